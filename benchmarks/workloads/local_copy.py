"""Copy one large object within a local folder."""

from __future__ import annotations

import filecmp
import os
import shutil
from typing import Any

from benchmarks import data
from benchmarks.harness import OURS, Comparison, Contender, Pass, Place, Workload, expect
from benchmarks.peers import fsspec_local, obstore_local, opendal_local


def source(place: Place) -> str:
    """Beneath `place.root`, as the copy is."""
    return f"{place.shared.relative_to(place.root)}/large-{place.scale.large}.bin"


def copy(place: Place) -> str:
    """Beneath `place.root`."""
    return f"{place.scratch.relative_to(place.root)}/copy.bin"


def setup(place: Place) -> None:
    data.large(place.root / source(place), place.scale.large)


def ours(place: Place) -> Pass:
    from storage_backend import LocalStorage

    storage = LocalStorage(place.root)
    return lambda: storage.copy(source(place), copy(place))


def plain(place: Place) -> Pass:
    return lambda: shutil.copyfile(place.root / source(place), place.root / copy(place))


def fsspec(place: Place) -> Pass:
    files = fsspec_local()
    return lambda: files.cp_file(f"{place.root}/{source(place)}", f"{place.root}/{copy(place)}")


def obstore(place: Place) -> Pass:
    store = obstore_local(place.root)

    def run() -> bool:
        store.copy(source(place), copy(place))
        return os.path.samefile(place.root / source(place), place.root / copy(place))

    return run


def opendal(place: Place) -> Pass:
    operator = opendal_local(place.root)
    return lambda: operator.copy(source(place), copy(place))


def hard_link(result: bool) -> None:
    """Whether obstore's contender is still named for what it does."""
    expect(result, "obstore no longer makes a hard link: rename its contender")


def check(place: Place, _result: Any) -> None:
    expect(
        filecmp.cmp(place.root / source(place), place.root / copy(place), shallow=False),
        "the copy holds other bytes",
    )


WORKLOAD = Workload(
    title="Copy a large object",
    what=(
        "{large} (`--full`: 1 GiB), to a new name. Ours appears whole or not at all; with shutil and "
        "fsspec a part is visible. obstore creates a hard link, which is not a copy: a change in "
        "place changes both."
    ),
    contenders=(
        Contender(OURS, ours),
        Contender("shutil.copyfile", plain),
        Contender("fsspec cp_file", fsspec, module="fsspec"),
        Contender("obstore copy (a hard link)", obstore, module="obstore", result=hard_link),
        Contender("opendal copy", opendal, module="opendal"),
    ),
    setup=setup,
    check=check,
    rounds=9,
    comparisons=(
        Comparison(OURS, "shutil.copyfile", 1.0),
        Comparison(OURS, "fsspec cp_file"),
        Comparison(OURS, "opendal copy"),
    ),
)
