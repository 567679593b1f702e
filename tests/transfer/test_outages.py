"""A side that is away for a while: what met it is tried again, in batches, and nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from storage_backend import (
    Capability,
    LocalStorage,
    MemoryStorage,
    NoEndpointError,
    ObjectInfo,
    RemoteStorage,
    StorageBackend,
    TransferOptions,
    UnavailableError,
    migrate,
    sync,
)
from storage_backend.backends.remote import SSHConfig
from storage_backend.owners import temporary_name
from storage_backend.testing import FaultyStorage
from storage_backend.transfer import Event
from storage_backend.wrappers.base import Wrapper
from tests.ssh_servers import OpenSSH
from tests.transfer.samples import contents, memory, put

OBJECTS = {f"{number % 7}/{number:04}": b"%d" % number for number in range(600)}


def away(where: str = "ssh://me@nas.example:22/data") -> UnavailableError:
    return UnavailableError("connection refused", backend=where)


class Away(Wrapper):
    """Refuses so many calls of each kind, from the second of the kind on."""

    def __init__(self, backend: StorageBackend, times: int) -> None:
        super().__init__(backend)
        self.times = times
        self.calls: dict[str, int] = {}
        self.sizes: list[int] = []
        self.lock = threading.Lock()

    def _pass(self, kind: str) -> None:
        with self.lock:
            self.calls[kind] = self.calls.get(kind, 0) + 1
            if 1 < self.calls[kind] <= 1 + self.times:
                raise away()

    @property
    def capabilities(self) -> Capability:
        return super().capabilities | Capability.FLUSH

    def read_many(self, identifiers: Any, **_: Any) -> Iterator[tuple[str, bytes]]:
        names = list(identifiers)
        self.sizes.append(len(names))
        self._pass("read_many")
        yield from super().read_many(names)

    def write_many(self, items: Any, *, verify: bool = False, **_: Any) -> int:
        self._pass("write_many")
        return super().write_many(items, verify=verify)

    def delete_many(self, identifiers: Any, **_: Any) -> int:
        self._pass("delete_many")
        return super().delete_many(identifiers)

    def scan(self, prefix: str = "", **keywords: Any) -> Iterator[ObjectInfo]:
        for number, info in enumerate(super().scan(prefix, **keywords)):
            if number == 100:
                self._pass("scan")
                self._pass("scan")
            yield info

    def stat(self, identifier: str) -> ObjectInfo:
        self._pass("stat")
        return super().stat(identifier)

    def flush(self) -> bool:
        self._pass("flush")
        self._pass("flush")
        return True


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage_backend.transfer.retry_budget.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("storage_backend.transfer.retry_budget.LONGEST_PAUSE", 0.002)


@pytest.mark.parametrize("side", ["source", "target"])
def test_an_outage_of_either_side_in_any_phase_is_survived(side: str, tmp_path: Path) -> None:
    inner = memory(OBJECTS), memory({"extra": b""})
    source, target = Away(inner[0], 30), Away(inner[1], 30)
    pair = (source, inner[1]) if side == "source" else (inner[0], target)
    events: list[Event] = []
    report = migrate(
        *pair,
        journal=tmp_path / "journal",
        delete=True,
        delete_source=True,
        flush=side == "target",
        batch_objects=100,
        on_event=events.append,
    )
    assert report.failed == {}
    assert report.ok
    assert (report.copied, report.deleted, report.source_deleted) == (600, 1, 600)
    assert contents(inner[1]) == OBJECTS
    assert inner[0].list() == []
    if side == "source":
        assert min(source.sizes) > 20  # in batches, not one by one


def test_a_side_that_stays_away_is_given_up_and_named(tmp_path: Path) -> None:
    source, target = memory(OBJECTS), FaultyStorage(MemoryStorage())
    target.fail("write_many", nth=2, times=None, error=away())
    target.fail("write_stream", nth=1, times=None, error=away())
    seen: list[dict[str, Any]] = []

    def listen(event: Event) -> None:
        if event.kind == "progress":
            seen.append(event.fields)

    report = sync(source, target, retry_for=0.7, batch_objects=100, on_event=listen)
    assert len(report.failed) == 500
    assert report.retryable
    waiting = [fields for fields in seen if "waiting_for" in fields]
    assert {fields["waiting_for"] for fields in waiting} == {"nas.example"}
    assert "waiting_for" not in seen[-1]
    assert sync(source, target.backend).ok


def test_what_always_fails_does_not_hold_up_the_rest() -> None:
    class Poisoned(MemoryStorage):
        tries = 0

        def read(self, identifier: str) -> bytes:
            if identifier == "3/0003":
                self.tries += 1
                raise away()
            return super().read(identifier)

    source, target = Poisoned(), MemoryStorage()
    for name, content in OBJECTS.items():
        put(source, name, content)
    # Neither side is away: it is not waited for as long as for one that is.
    report = sync(source, target, retry_for=1000, batch_objects=20)
    assert list(report.failed) == ["3/0003"]
    assert report.copied == 599
    assert 3 < source.tries < 10


def test_a_side_that_nothing_was_heard_of_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage_backend.transfer.listing.FIRST_CONTACT", 0.05)
    target = FaultyStorage(MemoryStorage())
    target.fail("scan", nth=1, times=None, error=NoEndpointError("no such host"))
    with pytest.raises(NoEndpointError):
        sync(memory(OBJECTS), target)


def test_a_negative_patience_is_refused() -> None:
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match="retry_for"):
            TransferOptions(retry_for=wrong)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OpenSSH]:
    server = OpenSSH()
    yield server
    server.stop()


def remote(server: OpenSSH, path: str) -> RemoteStorage:
    config = {
        "user": server.user,
        "endpoints": [[server.host, server.port]],
        "key_filename": server.key_filename,
        "known_hosts": server.known_hosts,
        "agent": False,
        "connection_timeout": 20.0,
    }
    return RemoteStorage(cast(SSHConfig, config), f"{server.base}/{path}")


class Outages:
    """Kills a server and starts it some seconds later, so many times, at different points of a transfer."""

    def __init__(self, server: OpenSSH, times: int, seconds: float) -> None:
        self.server = server
        self.times = times
        self.seconds = seconds
        self.came = 0
        self.objects = 0
        self.starting = threading.Thread()

    def __call__(self, event: Event) -> None:
        self.objects += event.kind == "object"
        due = self.came < self.times and self.objects >= 100 * (self.came + 1)
        if due and not self.starting.is_alive():
            self.came += 1
            self.server.kill()
            self.starting = threading.Timer(self.seconds, self.server.start)
            self.starting.start()


def mine(path: Path) -> list[Path]:
    return list(path.rglob(".~sb-*"))


@pytest.mark.parametrize("direction", ["to", "from"])
def test_a_server_that_is_started_anew_loses_no_object(
    direction: str, server: OpenSSH, tmp_path: Path, soak: bool
) -> None:
    folder = LocalStorage(tmp_path / "folder")
    count, times = (3000, 3) if soak else (300, 1)
    names = [f"{number % 13:02}/{number:05}" for number in range(count)]
    folder.write_many((name, name.encode() * 20) for name in names)
    with remote(server, "there") as there:
        if direction == "from":
            assert sync(folder, there).ok
        pair = (folder, there) if direction == "to" else (there, LocalStorage(tmp_path / "back"))
        outages = Outages(server, times, 2.0 if soak else 0.2)
        report = migrate(*pair, journal=tmp_path / "journal", batch_objects=50, on_event=outages)
        outages.starting.join()
        assert outages.came == times
        assert report.failed == {}
        assert report.copied + report.compared == count
        assert contents(pair[1]) == contents(folder)
    assert mine(tmp_path) == mine(server.local) == []


# Writes temporary files, says so, and is killed.
KILLED = """
import os, signal, sys
from storage_backend.owners import temporary_name
for folder in sys.argv[1:]:
    for number in range(3):
        with open(os.path.join(folder, f"{temporary_name()}-{number}" if number else temporary_name()), "w") as file:
            file.write("half")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["shell", "sftp", "local"])
def test_what_a_killed_run_left_is_removed_by_the_run_that_succeeds(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    place = (
        None
        if kind == "local"
        else request.getfixturevalue("openssh_place" if kind == "shell" else "internal_sftp_place")
    )
    folder = tmp_path / "target" if place is None else place.local
    (folder / "inner").mkdir(parents=True)
    subprocess.run([sys.executable, "-c", KILLED, folder, folder / "inner"], check=False)
    assert len(mine(folder)) == 6
    # Not ours to judge: of this process, which is at work, of another machine, and what another scheme named.
    others = [temporary_name(), f".~sb-{'f' * 36}", f".~sb-{'0' * 32}.part", ".~sb-old"]
    for name in others:
        (folder / name).write_bytes(b"other")
    source = memory({"a": b"1", "inner/b": b"2"})
    with (
        LocalStorage(folder)
        if place is None
        else RemoteStorage(cast(SSHConfig, place.config()), place.base) as target
    ):
        failing = FaultyStorage(source)
        failing.fail("read_many", nth=1, times=None, error=PermissionError("no"))
        assert not sync(failing, target).ok
        assert len(mine(folder)) == 10
        assert sync(source, target).ok
        assert contents(target) == contents(source)
    assert {path.name for path in mine(folder)} == set(others)
