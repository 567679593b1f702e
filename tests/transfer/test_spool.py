import threading

import pytest

from storage_backend import ObjectInfo
from storage_backend.transfer.planning import Action
from storage_backend.transfer.spool import Spool
from tests.transfer.samples import OLD

pytestmark = pytest.mark.quick


def action(number: int) -> Action:
    name = f"{number}-\udc80\n😀" * 20
    return Action(name, "copy", "missing", ObjectInfo(name, number, OLD, "e", None, "text/plain"), None, 1.5)


def test_actions_come_out_as_they_went_in_while_both_sides_run() -> None:
    spool = Spool()
    planned = [action(number) for number in range(5000)]

    def fill() -> None:
        for each in planned:
            spool.put(each)
        spool.complete()

    thread = threading.Thread(target=fill)
    thread.start()
    taken = [each for each in spool.take(0.01) if each is not None]
    thread.join()
    spool.close()
    assert taken == planned
    assert spool.count == len(planned)


def test_the_taker_is_told_when_nothing_has_come() -> None:
    spool = Spool()
    taking = spool.take(0)
    assert next(taking) is None
    spool.put(action(1))
    assert next(taking) == action(1)
    assert next(taking) is None
    spool.complete()
    assert list(taking) == []
    spool.close()
