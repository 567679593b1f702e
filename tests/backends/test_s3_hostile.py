"""S3Storage and a server that lies: no wrong byte, no error that is not ours, no wait and no memory beyond its limit."""

from __future__ import annotations

import contextlib
import random
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from storage_backend import BatchError, PreconditionFailedError, StorageError
from storage_backend.backends.s3 import retries
from tests.backends.test_s3_random_faults import BUCKET, GONE, MIB, SEED, Workload, digest, storage_of
from tests.s3_server import S3Server
from tests.s3_server_lies import Liar

OPERATIONS = 5_000
FEW = 150
IO_TIMEOUT = 3.0  # seconds; on a busy machine a shorter one would have requests done after they were given up
LONGEST = 60.0  # seconds of one call: some requests, of which each waits for IO_TIMEOUT at most, and some tries of each
MEMORY = 512 << 20  # bytes that the process may grow by


class Cheated(Workload):
    """As `Workload`, where only what is read is believed: whether something is there, and how large, may be a lie."""

    def __init__(self, server: S3Server, *arguments: Any, large: bool) -> None:
        super().__init__(*arguments)
        self.server = server
        self.large = large
        self.verbs += [(self.list, 6), (self.look, 2), (self.delete_many, 2)]

    @override
    def step(self) -> None:
        verbs, weights = zip(*self.verbs, strict=True)
        verb = self.draw.choices(verbs, weights)[0]
        began = time.monotonic()
        try:
            verb(self.draw.choice(self.keys))
        except StorageError as error:
            check_ours(error)
            self.failed[verb.__name__] += 1
        else:
            self.done[verb.__name__] += 1
        assert time.monotonic() - began < LONGEST, verb.__name__
        self.check(verb.__name__)

    def check(self, verb: str) -> None:
        """What the server holds is what it may hold, whatever was said of it."""
        held = self.server.objects(BUCKET)
        for key in self.keys:
            found = digest(held[key]) if key in held else GONE
            assert found in self.model.of(key), f"after {verb}, {key} holds what it cannot hold"

    @override
    def content(self) -> bytes:
        found = super().content()
        # All that was ever written is kept, to be compared with.
        return found[: 6 * MIB] if self.large and self.draw.random() < 0.3 else found[:5000]

    @override
    def peek(self, key: str) -> None:
        """The checksum shows a wrong byte to who reads to the end; what stays unread is no answer to the next request."""
        with self.storage.open(key) as reader:
            reader.read(20)

    @override
    def look(self, key: str) -> None:
        self.storage.exists(key)
        self.storage.size(key)

    @override
    def list(self, _: str) -> None:
        found = self.storage.list(self.draw.choice([None, "*", "key*"]))
        assert found == sorted(found)

    @override
    def replace(self, key: str) -> None:
        etag = self.storage.stat(key).etag or ""
        content = self.content()
        new = self.remember(content)
        before = set(self.model.of(key))
        self.model.may_become(key, new)
        try:
            self.storage.replace(key, content, etag)
        except PreconditionFailedError:
            self.model.may_become(key, *before)
            return
        self.model.becomes(key, new)


def check_ours(error: BaseException) -> None:
    assert isinstance(error, StorageError), repr(error)
    if isinstance(error, BatchError):
        for each in error.failures.values():
            check_ours(each)


def lied_to(server: S3Server, tmp_path: Path, seed: int, count: int, *, large: bool) -> Liar:
    """Do *count* operations, and have *server* lie."""
    naps: list[float] = []
    liar = Liar(random.Random(seed + 1), stalls=count // 250)
    with contextlib.closing(
        storage_of(server, sleep=naps.append, io_timeout=IO_TIMEOUT, attempts=4)
    ) as storage:
        keys = [f"key {number}" for number in range(6)]
        work = Cheated(server, storage, random.Random(seed), tmp_path, keys, large=large)
        assert not storage.exists("none")  # boto3's own modules are loaded
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        server.faults.choose = liar
        for step in range(count):
            try:
                work.step()
            except BaseException as error:
                error.add_note(f"seed {seed}, step {step}")
                raise
        server.faults.clear()
        assert work.failed.total() > count // 50
        if large:
            assert {*work.done} == {verb.__name__ for verb, _ in work.verbs}, work.done
        # Once nobody lies, all is as before.
        assert storage.write("key 0", b"true")
        assert storage.read("key 0") == b"true"
        assert "key 0" in storage.list()
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) << 10 < MEMORY
        assert max(naps, default=0.0) <= retries.PATIENCE
    return liar


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return S3Server()


def test_lies_do_no_harm(server: S3Server, tmp_path: Path, soak: bool) -> None:
    count = OPERATIONS if soak else FEW
    with server:
        server.create_bucket(BUCKET)
        liar = lied_to(server, tmp_path, SEED, count, large=soak)
    print(f"{count:,} operations, {liar.told.total():,} lies of {len(liar.told)} kinds")
    if soak:
        assert {*liar.told} == liar.lies
