"""S3Storage among random faults: whatever happens, each object is whole, one of those that were written, and its own."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from storage_backend import (
    BatchError,
    IntegrityError,
    NotFoundError,
    PreconditionFailedError,
    RateLimitedError,
    S3Storage,
    SourceChangedError,
    StorageError,
    StorageTimeoutError,
    UnavailableError,
)
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.s3_server_faults import (
    Fault,
    corrupt_request,
    corrupt_response,
    error_200,
    ignore_range,
    reply,
    reset,
    stale,
    stall,
    truncate,
)
from tests.s3_server_wire import Request

BUCKET = "bucket"
MIB = 1 << 20
SEED = 20_261_121
FAULTS = 1000
MOST_STEPS = 20_000
SECONDS = 2.5  # of threads at work, twice

LATE = {"CopyObject", "CompleteMultipartUpload", "UploadPartCopy"}
DOCUMENTS = {"ListObjectsV2", "CopyObject", "DeleteObjects"}
WITH_BODY = {"PutObject", "UploadPart", "DeleteObjects"}
KINDS = {
    "reset",
    "stall",
    "reply",
    "error_200",
    "truncate",
    "corrupt_request",
    "corrupt_response",
    "ignore_range",
    "stale",
}


class Plan:
    """Which requests meet which fault. Each is drawn by itself, so that they come in sequences too."""

    def __init__(self, draw: random.Random, *, rate: float = 0.4, stalls: int = 3) -> None:
        self._draw = draw
        self._rate = rate
        self._lock = threading.Lock()
        self._stalls = stalls  # each costs a timeout
        self._storm = 0  # requests that all fail: more than the attempts
        self.kinds: Counter[str] = Counter()
        self.lost_uploads = 0  # answers with the id of an upload that never came

    def __call__(self, request: Request) -> Fault | None:
        with self._lock:
            fault = self._chosen(request)
            if fault is not None:
                self.kinds[fault.kind] += 1
                if request.operation == "CreateMultipartUpload" and (
                    fault.applied
                    or fault.moment in {"applied", "response_head", "response_body"}
                    or fault.kind == "truncate"
                ):
                    self.lost_uploads += 1
            return fault

    def _chosen(self, request: Request) -> Fault | None:
        draw = self._draw
        if self._storm:
            self._storm -= 1
            return draw.choice(
                [reply(503), reply(500, applied=True), reset("applied"), reset("before_applied")]
            )
        chance = draw.random()
        if chance > self._rate:
            return None
        if chance < self._rate / 40:
            self._storm = 8
        return draw.choice(self._possible(request))()

    def _possible(self, request: Request) -> list[Callable[[], Fault]]:
        draw, operation = self._draw, request.operation
        found: list[Callable[[], Fault]] = [
            lambda: reset("head"),
            lambda: reset("before_applied"),
            lambda: reset("applied"),
            lambda: reset("response_head", draw.randrange(300)),
            lambda: reply(draw.choice([429, 500, 503]), xml=draw.random() < 0.7, applied=draw.random() < 0.5),
            lambda: reply(503, retry_after="1", early=draw.random() < 0.5),
            lambda: stale(draw.choice(["close", "reset", "next"])),
        ]
        if operation in WITH_BODY:
            found.append(lambda: reset("request_body", draw.randrange(100_000)))
            found.append(lambda: corrupt_request(draw.randrange(100_000)))
        if operation in LATE:
            found += [lambda: error_200(applied=draw.random() < 0.5, padding=draw.randrange(3000))] * 3
        if operation in DOCUMENTS:
            found.append(lambda: truncate(draw.randrange(60), chunked=draw.random() < 0.5))
        if operation == "GetObject":
            found.append(lambda: reset("response_body", draw.randrange(100_000)))
            found.append(lambda: truncate(draw.randrange(100_000), chunked=draw.random() < 0.5))
            # Of a part of an object there is no checksum.
            found.append(
                ignore_range
                if "range" in request.headers
                else lambda: corrupt_response(draw.randrange(100_000))
            )
        if operation in {"GetObject", "HeadObject"} and self._stalls:
            self._stalls -= 1
            found = [lambda: stall(1.5, draw.choice(["response_head", "response_body"]), 10)]
        return found


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def fits(error: StorageError) -> bool:
    """Whether *error* is one that the faults may lead to."""
    if isinstance(error, BatchError):
        return all(isinstance(each, StorageError) and fits(each) for each in error.failures.values())
    # A StorageError and no more is a document that came cut short each time.
    return type(error) in {
        UnavailableError,
        RateLimitedError,
        StorageTimeoutError,
        IntegrityError,
        PreconditionFailedError,
        SourceChangedError,
        StorageError,
    }


def check_fits(error: StorageError, location: str) -> None:
    assert fits(error), repr(error)
    assert error.backend in {None, location}


GONE = ""


class Model:
    """What each key may hold: digests, or GONE."""

    def __init__(self) -> None:
        self.may: dict[str, set[str]] = {}

    def of(self, key: str) -> set[str]:
        return self.may.setdefault(key, {GONE})

    def is_now(self, key: str, found: str) -> None:
        assert found in self.of(key), f"{key} holds what it cannot hold"
        self.may[key] = {found}

    def becomes(self, key: str, *found: str) -> None:
        self.may[key] = set(found)

    def may_become(self, key: str, *found: str) -> None:
        self.of(key).update(found)


class Workload:
    """Random operations, each compared with the model."""

    def __init__(self, storage: S3Storage, draw: random.Random, directory: Path, keys: list[str]) -> None:
        self.storage = storage
        self.draw = draw
        self.path = directory / "file"
        self.keys = keys
        self.model = Model()
        self.contents = itertools.count()
        self.known: dict[str, bytes] = {digest(b""): b""}  # by digest
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.verbs: list[tuple[Callable[[str], None], int]] = [
            (self.read, 4),
            (self.read_slowly, 2),
            (self.read_range, 3),
            (self.peek, 2),
            (self.download, 1),
            (self.write, 4),
            (self.write_stream, 3),
            (self.write_by_open, 2),
            (self.upload, 1),
            (self.create, 2),
            (self.replace, 2),
            (self.copy, 2),
            (self.move, 2),
            (self.delete, 1),
            (self.delete_many, 1),
            (self.look, 2),
            (self.list, 2),
            (self.checksum, 1),
        ]

    def step(self) -> None:
        verbs, weights = zip(*self.verbs, strict=True)
        verb = self.draw.choices(verbs, weights)[0]
        name = verb.__name__
        try:
            verb(self.draw.choice(self.keys))
        except StorageError as error:
            check_fits(error, self.storage.location)
            self.failed[name] += 1
        else:
            self.done[name] += 1

    def content(self) -> bytes:
        """Bytes that are no other object's."""
        chance = self.draw.random()
        size = (
            0
            if chance < 0.05
            else self.draw.randrange(200_000)
            if chance < 0.97
            else self.draw.randrange(5 * MIB, 12 * MIB)
        )
        name = b"%d " % next(self.contents)
        return name + self.draw.randbytes(max(0, size - len(name))) if size else b""

    def read(self, key: str) -> None:
        self.seen(key, lambda: self.storage.read(key))

    def read_slowly(self, key: str) -> None:
        def read() -> bytes:
            with self.storage.open(key) as reader:
                return b"".join(iter(lambda: reader.read(50_000), b""))

        self.seen(key, read)

    def read_range(self, key: str) -> None:
        start = self.draw.randrange(1000)
        self.seen_part(key, start, self.draw.choice([None, start, start + 1, start + 60_000]))

    def download(self, key: str) -> None:
        def read() -> bytes:
            self.storage.download(key, self.path)
            return self.path.read_bytes()

        self.seen(key, read)

    def peek(self, key: str) -> None:
        """Read the beginning of what then stays unread: it must not be taken for the answer to the next request."""
        try:
            with self.storage.open(key) as reader:
                found = reader.read(20)
        except NotFoundError:
            self.model.is_now(key, GONE)
            return
        assert any(self.known[each][:20] == found for each in self.model.of(key) if each)

    def checksum(self, key: str) -> None:
        try:
            found = self.storage.checksum(key)
        except NotFoundError:
            found = GONE
        self.model.is_now(key, found)

    def seen(self, key: str, read: Callable[[], bytes]) -> None:
        try:
            found = digest(read())
        except NotFoundError:
            found = GONE
        self.model.is_now(key, found)

    def seen_part(self, key: str, start: int, end: int | None) -> None:
        try:
            found = self.storage.read_range(key, start, end)
        except NotFoundError:
            self.model.is_now(key, GONE)
            return
        whole = {each: self.known[each] for each in self.model.of(key) if each}
        possible = {each for each, content in whole.items() if content[start:end] == found}
        assert possible, f"a range of {key} is of nothing that it may hold"

    def remember(self, content: bytes) -> str:
        name = digest(content)
        self.known[name] = content
        return name

    def changing(self, key: str, content: bytes, change: Callable[[], object]) -> None:
        """Store; if it fails, the old object or the new one is there."""
        new = self.remember(content)
        self.model.may_become(key, new)
        change()
        self.model.becomes(key, new)

    def write(self, key: str) -> None:
        content = self.content()
        self.changing(key, content, lambda: self.storage.write(key, content))

    def write_stream(self, key: str) -> None:
        content = self.content()
        self.changing(key, content, lambda: self.storage.write_stream(key, io.BytesIO(content)))

    def write_by_open(self, key: str) -> None:
        content = self.content()

        def write() -> None:
            with self.storage.open(key, "wb") as writer:
                for start in range(0, len(content), 1 * MIB):
                    writer.write(content[start : start + 1 * MIB])

        self.changing(key, content, write)

    def upload(self, key: str) -> None:
        content = self.content()
        self.path.write_bytes(content)
        self.changing(key, content, lambda: self.storage.upload(self.path, key))

    def create(self, key: str) -> None:
        content = self.content()
        new = self.remember(content)
        before = set(self.model.of(key))
        self.model.may_become(key, *({new} if GONE in before else ()))
        if self.storage.create(key, content):
            assert GONE in before, f"{key} was created, and was there"
            self.model.becomes(key, new)
        else:
            assert before != {GONE}, f"{key} was not created, and was not there"
            self.model.becomes(key, *(before - {GONE}))

    def replace(self, key: str) -> None:
        try:
            etag = self.storage.stat(key).etag
        except NotFoundError:
            self.model.is_now(key, GONE)
            return
        assert etag is not None
        content = self.content()
        before = set(self.model.of(key))
        new = self.remember(content)
        self.model.may_become(key, new)
        try:
            assert self.storage.replace(key, content, etag)
        except PreconditionFailedError:
            pytest.fail(f"{key} was changed by nobody else")
        assert before != {GONE}
        self.model.becomes(key, new)

    def copy(self, key: str) -> None:
        dest = self.draw.choice(self.keys)
        sources = set(self.model.of(key))
        if dest != key:
            self.model.may_become(dest, *(sources - {GONE}))
        try:
            self.storage.copy(key, dest)
        except NotFoundError:
            self.model.is_now(key, GONE)
            return
        self.model.becomes(key, *(sources - {GONE}))
        if dest != key:
            self.model.becomes(dest, *(sources - {GONE}))

    def move(self, key: str) -> None:
        dest = self.draw.choice([each for each in self.keys if each != key])
        sources = set(self.model.of(key))
        self.model.may_become(dest, *(sources - {GONE}))
        self.model.may_become(key, GONE)
        try:
            self.storage.move(key, dest)
        except NotFoundError:
            assert GONE in sources
            self.model.becomes(key, GONE)
            return
        assert sources != {GONE}
        self.model.becomes(dest, *(sources - {GONE}))
        self.model.becomes(key, GONE)

    def delete(self, key: str) -> None:
        before = set(self.model.of(key))
        self.model.may_become(key, GONE)
        try:
            assert self.storage.delete(key) is True
        except NotFoundError:
            assert GONE in before
        else:
            assert before != {GONE}
        self.model.becomes(key, GONE)

    def delete_many(self, _: str) -> None:
        keys = self.draw.sample(self.keys, 3)
        for key in keys:
            self.model.may_become(key, GONE)
        assert self.storage.delete_many(keys) == 3
        for key in keys:
            self.model.becomes(key, GONE)

    def look(self, key: str) -> None:
        there = self.storage.exists(key)
        before = self.model.of(key)
        assert (before != {GONE}) if there else (GONE in before)
        self.model.becomes(key, *((before - {GONE}) if there else {GONE}))

    def list(self, _: str) -> None:
        found = {info.identifier: info.size for info in self.storage.scan()}
        for key in self.keys:
            may = self.model.of(key)
            if key in found:
                now = {each for each in may if each and len(self.known[each]) == found[key]}
                assert now, f"{key} is listed with a size of {found[key]}"
                self.model.becomes(key, *now)
            else:
                self.model.is_now(key, GONE)


def storage_of(server: S3Server, **options: Any) -> S3Storage:
    given: dict[str, Any] = {
        "access_key": ACCESS_KEY,
        "secret_key": SECRET_KEY,
        "region": "us-east-1",
        "sleep": lambda _: None,
        "io_timeout": 1.0,
        "connect_timeout": 10.0,
        "attempts": 3,
        "checksum": "crc32",
        "multipart_chunk_size": 5 * MIB,
        "multipart_threshold": 5 * MIB,
    }
    return S3Storage(BUCKET, endpoint_url=server.url, **given | options)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with S3Server() as server:
        server.create_bucket(BUCKET)
        yield server
        server.faults.clear()


@pytest.mark.soak
def test_a_thousand_random_faults_lose_and_mix_nothing(server: S3Server, tmp_path: Path) -> None:
    draw = random.Random(SEED)
    plan = Plan(random.Random(SEED + 1))
    server.settings.repeatable_complete = False
    keys = [f"key {number}" for number in range(8)]
    with contextlib.closing(storage_of(server)) as storage:
        work = Workload(storage, draw, tmp_path, keys)
        server.faults.choose = plan
        steps = 0
        while plan.kinds.total() < FAULTS or {*plan.kinds} != KINDS:
            steps += 1
            assert steps < MOST_STEPS, f"seed {SEED}: too few faults: {plan.kinds}"
            try:
                work.step()
            except BaseException as error:
                error.add_note(f"seed {SEED}, step {steps}")
                raise
        server.faults.clear()
        # Each verb has succeeded, and most have failed, so that both ways were taken.
        assert {*work.done} == {verb.__name__ for verb, _ in work.verbs}, work.done
        assert work.failed.total() > 20, work.failed
        for key, content in server.objects(BUCKET).items():
            assert digest(content) in work.model.of(key), f"seed {SEED}: {key} holds what it cannot hold"
        for key in {*keys} - {*server.objects(BUCKET)}:
            assert GONE in work.model.of(key), f"seed {SEED}: {key} is lost"
        # The next upload of a key drops or takes up what could not be aborted.
        for key in keys:
            assert storage.write_stream(key, io.BytesIO(bytes(6 * MIB)))
        left = server.uploads(BUCKET)
        assert len(left) <= plan.lost_uploads
        assert storage.abort_incomplete_uploads(timedelta(0)) == len(left)
        assert not server.uploads(BUCKET)


def sealed(key: str, body: bytes) -> bytes:
    """Content that shows whose it is, and that it is whole."""
    inner = b"%b\0%b" % (key.encode(), body)
    return hashlib.sha256(inner).digest() + inner


def check_seal(key: str, content: bytes) -> None:
    inner = content[32:]
    assert hashlib.sha256(inner).digest() == content[:32], f"{key}: torn"
    assert inner.startswith(key.encode() + b"\0"), f"{key}: the answer for another object"


def shared_step(storage: S3Storage, draw: random.Random, key: str) -> None:
    """Something with an object that all change."""
    chance = draw.random()
    try:
        if chance < 0.35:
            check_seal(key, storage.read(key))
        elif chance < 0.5:
            with storage.open(key) as reader:
                check_seal(key, b"".join(iter(lambda: reader.read(20_000), b"")))
        elif chance < 0.9:
            storage.write(key, sealed(key, draw.randbytes(draw.randrange(100_000))))
        elif chance < 0.95:
            storage.stat(key)
        else:
            storage.delete(key)
    except NotFoundError:
        pass
    except StorageError as error:
        check_fits(error, storage.location)


@pytest.mark.soak
def test_eight_threads_among_faults_get_their_own_answers_and_leave_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    threads_before = {*threading.enumerate()}
    plan = Plan(random.Random(SEED + 2), rate=0.04, stalls=0)
    failures: list[BaseException] = []
    steps: Counter[str] = Counter()
    end = threading.Event()

    def work(number: int, storage: S3Storage) -> None:
        draw = random.Random(SEED + 10 + number)
        directory = tmp_path / str(number)
        directory.mkdir(exist_ok=True)
        own = Workload(storage, draw, directory, [f"own {number} {each}" for each in range(4)])
        # A listing is of everybody's objects, which is much to read while they change.
        own.verbs = [(verb, weight) for verb, weight in own.verbs if verb.__name__ != "list"]
        try:
            while not end.is_set():
                own.step()
                for _ in range(2):
                    shared_step(storage, draw, f"shared {draw.randrange(4)}")
                steps["all"] += 3
        except BaseException as error:  # noqa: BLE001 - raised by the test's own thread
            error.add_note(f"seed {SEED}, thread {number}")
            failures.append(error)
            end.set()

    def run() -> None:
        with (
            S3Server() as server,
            contextlib.closing(storage_of(server, attempts=4, io_timeout=20.0)) as storage,
        ):
            server.create_bucket(BUCKET)
            assert not storage.exists("none")  # boto3's own modules are loaded
            server.faults.choose = plan
            threads = [threading.Thread(target=work, args=(number, storage)) for number in range(8)]
            for thread in threads:
                thread.start()
            end.wait(SECONDS)
            end.set()
            for thread in threads:
                thread.join()
            server.faults.clear()
            for error in failures:
                raise error
            requests = len(server.actions)
            assert plan.kinds.total() >= 20, plan.kinds
            assert server.connections < requests / 4, (
                f"{server.connections} connections for {requests} requests"
            )
            for key, content in server.objects(BUCKET).items():
                if key.startswith("shared"):
                    check_seal(key, content)

    run()
    for thread in {*threading.enumerate()} - threads_before:
        thread.join(60)
    assert {*threading.enumerate()} == threads_before
    descriptors = open_descriptors()
    end.clear()
    run()
    for thread in {*threading.enumerate()} - threads_before:
        thread.join(60)
    assert open_descriptors() <= descriptors


def open_descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))
