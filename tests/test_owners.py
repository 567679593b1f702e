"""Temporary names: a file of a living process is never taken for a leftover."""

import subprocess
import sys

import pytest

from storage_backend import owners

pytestmark = pytest.mark.quick


def test_a_dead_process_is_told_from_a_living_one() -> None:
    own = owners.temporary_name()
    assert not owners.is_abandoned(own)
    done = subprocess.run(
        [sys.executable, "-c", "from storage_backend.owners import temporary_name as n; print(n())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert owners.is_abandoned(done.stdout.strip())


def test_what_cannot_be_known_is_not_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    own = owners.temporary_name()
    tag = owners.tag()
    living = owners.living()
    assert tag in living
    # As with hidepid=2 (proc(5)): the processes of other users are not in /proc.
    monkeypatch.setattr(owners, "_started", lambda _pid: None)
    assert not owners.is_abandoned(own)
    assert owners.living() == frozenset()
    assert not owners.is_abandoned_tag(tag, owners.living())
    # As at the limit of descriptors: this process cannot read its own start time.
    assert not any(owners.tag()[:4])
    owners._owner.cache_clear()
    unknown = owners.temporary_name()
    owners._owner.cache_clear()
    monkeypatch.undo()
    assert not owners.is_abandoned(unknown)
    assert owners.temporary_name()[:-12] == own[:-12]
