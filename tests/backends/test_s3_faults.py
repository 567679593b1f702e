"""S3Storage when the network and the service fail, one way at a time: it ends right, or says what happened."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from storage_backend import (
    BatchError,
    IntegrityError,
    ObjectInfo,
    PreconditionFailedError,
    RateLimitedError,
    S3Storage,
    SourceChangedError,
    StorageError,
    StorageTimeoutError,
    UnavailableError,
)
from storage_backend.testing.subject import same
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.s3_server_faults import (
    Fault,
    Stale,
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
from tests.tiers import few, spread

BUCKET = "bucket"
MIB = 1 << 20
ATTEMPTS = 3


@cache
def bytes_of(size: int, seed: int = 0) -> bytes:
    """Bytes that no other seed has."""
    return random.Random(f"{size} {seed}").randbytes(size)


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class Unseekable(io.RawIOBase):
    """A reader that can be read once, and gives what it likes at a time."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")[:100_000]
        return self._content.readinto(view)


def reader_of(content: bytes) -> BinaryIO:
    return cast(BinaryIO, Unseekable(content))


@dataclass
class Site:
    """A server with a bucket, a storage of it, and what that has slept."""

    server: S3Server
    storage: S3Storage
    naps: list[float]

    @property
    def objects(self) -> dict[str, bytes]:
        return self.server.objects(BUCKET)

    @property
    def fired(self) -> int:
        return len(self.server.faults.fired)

    def put(self, key: str, content: bytes) -> None:
        """Store an object with its checksum, as `storage` does."""
        assert self.storage.write(key, content)


def storage_of(server: S3Server, **options: Any) -> S3Storage:
    given: dict[str, Any] = {
        "access_key": ACCESS_KEY,
        "secret_key": SECRET_KEY,
        "region": "us-east-1",
        "sleep": lambda _: None,
        "io_timeout": 10.0,
        "connect_timeout": 10.0,
        "attempts": ATTEMPTS,
        "checksum": "crc32",
        "multipart_chunk_size": 5 * MIB,
        "multipart_threshold": 5 * MIB,
    }
    return S3Storage(BUCKET, endpoint_url=server.url, **given | options)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all tests: to make a client of boto3's costs more than most of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        naps: list[float] = []
        with S3Server() as server, contextlib.closing(storage_of(server, sleep=naps.append)) as storage:
            yield Site(server, storage, naps)


@pytest.fixture
def site(shared: Site) -> Site:
    """With an empty bucket, and no faults."""
    shared.server.faults.clear()
    shared.server.settings.page_size = 1000
    shared.server.settings.repeatable_complete = True
    shared.server.create_bucket(BUCKET)
    shared.server.faults.fired.clear()
    shared.naps.clear()
    return shared


@pytest.fixture
def furnished(site: Site) -> Site:
    """With some objects."""
    for key, content in [("old", OLD), ("small", SMALL), *((f"many/{n:02}", b"%d" % n) for n in range(10))]:
        site.put(key, content)
    site.server.settings.page_size = 3
    return site


@dataclass(frozen=True)
class Verb:
    """Something to do, and what it does.

    Attributes:
        operation: of S3, that is to fail.
        do: does it.
        gives: the result.
        makes: objects that are there afterwards, as well as those before.
        drops: objects that are not.
        sends: whether the request has a body.
        gets: whether the answer has one.
    """

    name: str
    operation: str
    do: Callable[[S3Storage, Path], object]
    gives: object
    makes: dict[str, bytes] = field(default_factory=dict)
    drops: tuple[str, ...] = ()
    sends: bool = False
    gets: bool = False

    def __str__(self) -> str:
        return self.name

    def after(self, before: dict[str, bytes]) -> dict[str, bytes]:
        kept = {key: body for key, body in before.items() if key not in self.drops}
        return dict(sorted({**kept, **self.makes}.items()))


OLD = bytes_of(300_000)
SMALL = bytes_of(1000, 1)
LARGE = bytes_of(11 * MIB, 2)
ETAG = md5(SMALL)


def read_all(storage: S3Storage, _: Path) -> bytes:
    with storage.open("old") as reader:
        return reader.read()


def read_by_lines(storage: S3Storage, _: Path) -> bytes:
    with storage.open("old") as reader:
        return b"".join(iter(lambda: reader.read(7000), b""))


def read_behind(storage: S3Storage, _: Path) -> bytes:
    with storage.open("old") as reader:
        reader.seek(-1000, io.SEEK_END)
        return reader.read()


def write_by_open(content: bytes) -> Callable[[S3Storage, Path], object]:
    def do(storage: S3Storage, _: Path) -> object:
        with storage.open("new", "wb") as writer:
            for start in range(0, len(content), 3_000_000):
                writer.write(content[start : start + 3_000_000])
        return True

    return do


def write_stream(content: bytes) -> Callable[[S3Storage, Path], object]:
    return lambda storage, _: storage.write_stream("new", reader_of(content))


def upload(storage: S3Storage, directory: Path) -> object:
    path = directory / "up"
    path.write_bytes(LARGE)
    return storage.upload(path, "new")


def download(storage: S3Storage, directory: Path) -> bytes:
    storage.download("old", directory / "down")
    return (directory / "down").read_bytes()


READS = [
    Verb("read", "GetObject", lambda s, _: s.read("old"), OLD, gets=True),
    Verb("read_range", "GetObject", lambda s, _: s.read_range("old", 1000, 9000), OLD[1000:9000], gets=True),
    Verb("read_range_rest", "GetObject", lambda s, _: s.read_range("old", 1000), OLD[1000:], gets=True),
    Verb("open", "GetObject", read_all, OLD, gets=True),
    Verb("open_by_pieces", "GetObject", read_by_lines, OLD, gets=True),
    Verb("open_seek", "GetObject", read_behind, OLD[-1000:], gets=True),
    Verb("download", "GetObject", download, OLD, gets=True),
    Verb("checksum", "GetObject", lambda s, _: s.checksum("old", "md5"), md5(OLD), gets=True),
]
LOOKS = [
    Verb("exists", "HeadObject", lambda s, _: s.exists("old"), True),
    Verb("exists_not", "HeadObject", lambda s, _: s.exists("none"), False),
    Verb("size", "HeadObject", lambda s, _: s.size("old"), len(OLD)),
    Verb(
        "list",
        "ListObjectsV2",
        lambda s, _: s.list(),
        [*(f"many/{n:02}" for n in range(10)), "old", "small"],
        gets=True,
    ),
    Verb("list_level", "ListObjectsV2", lambda s, _: s.list("*"), ["old", "small"], gets=True),
]
WRITES = [
    Verb("write", "PutObject", lambda s, _: s.write("small", OLD), True, {"small": OLD}, sends=True),
    Verb("write_empty", "PutObject", lambda s, _: s.write("small", b""), True, {"small": b""}),
    Verb("write_stream_of_1", "PutObject", write_stream(b"x"), True, {"new": b"x"}, sends=True),
    Verb("open_wb", "PutObject", write_by_open(OLD), True, {"new": OLD}, sends=True),
    Verb("create", "PutObject", lambda s, _: s.create("new", OLD), True, {"new": OLD}, sends=True),
    Verb("create_over", "PutObject", lambda s, _: s.create("old", SMALL), False, sends=True),
    Verb(
        "replace",
        "PutObject",
        lambda s, _: s.replace("small", OLD, ETAG),
        md5(OLD),
        {"small": OLD},
        sends=True,
    ),
    Verb("copy", "CopyObject", lambda s, _: s.copy("old", "new"), True, {"new": OLD}, gets=True),
    Verb(
        "move_copies",
        "CopyObject",
        lambda s, _: s.move("old", "new"),
        True,
        {"new": OLD},
        ("old",),
        gets=True,
    ),
    Verb("move_deletes", "DeleteObject", lambda s, _: s.move("old", "new"), True, {"new": OLD}, ("old",)),
    Verb("move_looks", "HeadObject", lambda s, _: s.move("old", "new"), True, {"new": OLD}, ("old",)),
    Verb("delete", "DeleteObject", lambda s, _: s.delete("old"), True, {}, ("old",)),
    Verb(
        "delete_many",
        "DeleteObjects",
        lambda s, _: s.delete_many(["old", "small", "none"]),
        3,
        {},
        ("old", "small"),
        sends=True,
        gets=True,
    ),
]
PARTS = [
    Verb(
        f"{name}_{operation}",
        operation,
        do,
        True,
        {"new": content},
        sends=operation == "UploadPart",
        gets=operation == "CompleteMultipartUpload",
    )
    for name, do, content in [
        ("write_stream", write_stream(LARGE), LARGE),
        ("open_wb", write_by_open(LARGE), LARGE),
        ("upload", upload, LARGE),
    ]
    for operation in ("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")
]
VERBS = [*READS, *LOOKS, *WRITES, *PARTS]

ANY = {
    "reset_head": reset("head"),
    "reset_before_applied": reset("before_applied"),
    "reset_applied": reset("applied"),
    "reset_in_head_of_answer": reset("response_head", 20),
    "500": reply(500),
    "503": reply(503),
    "429": reply(429),
    "500_without_xml": reply(500, xml=False),
    "503_retry_after": reply(503, retry_after="7"),
    "500_early": reply(500, early=True),
    "500_applied": reply(500, applied=True),
}
WITH_REQUEST_BODY = {
    "reset_in_request": reset("request_body", 500),
    "corrupt_request": corrupt_request(77),
}
WITH_ANSWER_BODY = {
    "reset_in_answer": reset("response_body", 100),
    "truncated": truncate(100),
    "truncated_chunked": truncate(100, chunked=True),
}
WITH_LATE_ERRORS = {
    "error_200": error_200(),
    "error_200_applied": error_200(applied=True),
    "error_200_padded": error_200("SlowDown", padding=3000),
}
LATE = {"CopyObject", "CompleteMultipartUpload"}
BY_BOTO3 = {
    "CreateMultipartUpload",
    "CompleteMultipartUpload",
}  # it waits as it likes, whatever Retry-After says


def cases() -> list[Any]:
    found = []
    for verb in VERBS:
        faults = dict(ANY)
        if verb.sends:
            faults |= WITH_REQUEST_BODY
        if verb.gets:
            faults |= WITH_ANSWER_BODY
        if verb.operation in LATE:
            faults |= WITH_LATE_ERRORS
        if verb.name.startswith(("open_wb_", "upload_")):
            faults = {
                name: fault for name, fault in faults.items() if name in {"reset_applied", "reset_in_request"}
            }
        found += [pytest.param(verb, fault, id=f"{verb}-{name}") for name, fault in faults.items()]
    return found


def loses_an_upload(verb: Verb, fault: Fault) -> bool:
    """Whether the answer with the id of an upload is lost, so that nobody can abort that one."""
    return verb.operation == "CreateMultipartUpload" and (
        fault.applied or fault.moment in {"applied", "response_head", "response_body"}
    )


@pytest.mark.parametrize(("verb", "fault"), spread(cases(), times=2))
def test_one_fault_changes_nothing_of_the_outcome(
    furnished: Site, tmp_path: Path, verb: Verb, fault: Fault
) -> None:
    site = furnished
    before = site.objects
    site.server.faults.add(fault, verb.operation)
    assert same(verb.do(site.storage, tmp_path), verb.gives)
    assert site.fired == 1
    assert same(site.objects, verb.after(before))
    assert len(site.server.uploads(BUCKET)) == loses_an_upload(verb, fault)
    if fault.retry_after is not None and verb.operation not in BY_BOTO3:
        assert [nap for nap in site.naps if nap >= 7] == [7.0]


@pytest.mark.parametrize("name", few(["reset_applied", "reset_in_head_of_answer", "reset_head"], 1))
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb.operation not in BY_BOTO3], ids=str)
def test_one_fault_on_a_fresh_connection_changes_nothing_of_the_outcome(
    furnished: Site, tmp_path: Path, verb: Verb, name: str
) -> None:
    site = furnished
    before = site.objects
    site.storage.close()
    site.server.faults.add(ANY[name], verb.operation)
    assert same(verb.do(site.storage, tmp_path), verb.gives)
    assert site.fired == 1
    assert same(site.objects, verb.after(before))


@pytest.mark.parametrize("how", few(["close", "reset", "next"], 1))
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb.operation not in BY_BOTO3], ids=str)
def test_a_stale_connection_costs_no_pause(furnished: Site, tmp_path: Path, verb: Verb, how: Stale) -> None:
    site = furnished
    before = site.objects
    site.server.faults.add(stale(how), "HeadObject", key="small")
    assert site.storage.exists("small")
    assert same(verb.do(site.storage, tmp_path), verb.gives)
    assert same(site.objects, verb.after(before))
    assert not site.naps


def exhausting() -> list[Any]:
    found = []
    kinds: dict[str, tuple[Fault, type[StorageError], bool]] = {
        "reset_head": (reset("head"), UnavailableError, False),
        "reset_before_applied": (reset("before_applied"), UnavailableError, False),
        "reset_applied": (reset("applied"), UnavailableError, True),
        "500": (reply(500), UnavailableError, False),
        "500_applied": (reply(500, applied=True), UnavailableError, True),
        "503": (reply(503, retry_after="9"), RateLimitedError, False),
        "429_without_xml": (reply(429, xml=False), RateLimitedError, False),
    }
    for verb in (*READS, *LOOKS, *WRITES):
        mine = dict(kinds)
        if verb.sends:
            mine["corrupt_request"] = (corrupt_request(3), IntegrityError, False)
            mine["reset_in_request"] = (reset("request_body", 500), UnavailableError, False)
        if verb.operation == "GetObject":
            mine["reset_in_answer"] = (reset("response_body", 0), UnavailableError, False)
            mine["truncated"] = (truncate(0), UnavailableError, False)
        if verb.operation == "ListObjectsV2":
            mine["truncated_chunked"] = (truncate(100, chunked=True), StorageError, False)
        if verb.operation == "CopyObject":
            mine["error_200"] = (error_200(), UnavailableError, False)
        found += [pytest.param(verb, *kind, id=f"{verb}-{name}") for name, kind in mine.items()]
    return found


@pytest.mark.parametrize(("verb", "fault", "kind", "applied"), spread(exhausting(), times=1))
def test_more_faults_than_attempts_say_so_and_leave_the_old_object_or_the_new(  # noqa: PLR0917 - a case, and fixtures
    furnished: Site, tmp_path: Path, verb: Verb, fault: Fault, kind: type[StorageError], applied: bool
) -> None:
    site, storage = furnished, furnished.storage
    before = site.objects
    site.server.faults.add(fault, verb.operation, times=None)
    with pytest.raises(StorageError) as caught:
        verb.do(storage, tmp_path)
    error = caught.value
    if isinstance(error, BatchError):
        assert {*error.failures} == {"old", "small", "none"}
        error = cast(StorageError, error.failures["old"])
    assert type(error) is kind
    # A first try over a connection that looked closed is not counted.
    assert ATTEMPTS <= error.attempts <= ATTEMPTS + 1
    assert error.retryable is (kind not in {IntegrityError, StorageError})
    assert error.backend == storage.location
    assert storage.location in str(error)
    if verb.operation not in {"ListObjectsV2", "DeleteObjects"}:
        assert error.identifier in {"old", "small", "new", "none"}
        assert repr(error.identifier) in str(error)
    if isinstance(error, RateLimitedError):
        assert error.retry_after == (None if fault.retry_after is None else float(fault.retry_after))
    copied = {"new": OLD} if verb.name == "move_deletes" or (verb.name == "move_copies" and applied) else {}
    possible = [before | copied]
    if applied and verb.name != "move_copies":
        possible.append(verb.after(before))
    assert [each for each in possible if same(site.objects, dict(sorted(each.items()))) is True]
    assert site.fired <= 2 * ATTEMPTS + 1
    site.server.faults.clear()
    assert storage.exists("small") is ("small" in site.objects)


class Changes:
    """Does something once, when the storage pauses before it tries again, or when an operation comes in."""

    def __init__(self, site: Site, change: Callable[[], object]) -> None:
        self.server = site.server
        self.change: Callable[[], object] | None = change

    def __call__(self, _: float = 0) -> None:
        change, self.change = self.change, None
        if change is not None:
            change()

    def at(self, operation: str, nth: int = 1) -> None:
        """Have it happen when the *nth* such request has come."""
        counter = itertools.count(1)

        def choose(request: Request) -> None:
            if request.operation == operation and next(counter) == nth:
                self()

        self.server.faults.choose = choose


@contextlib.contextmanager
def another(site: Site, **options: Any) -> Iterator[S3Storage]:
    """A storage of the same bucket with other options."""
    with contextlib.closing(storage_of(site.server, **options)) as storage:
        yield storage


def test_create_is_false_if_another_created_it_between_two_tries(site: Site) -> None:
    change = Changes(site, lambda: site.server.put(BUCKET, "new", b"theirs"))
    with another(site, sleep=change) as storage:
        site.server.faults.add(reply(500), "PutObject")
        assert storage.create("new", b"ours") is False
    assert site.objects == {"new": b"theirs"}


def test_replace_fails_if_another_replaced_it_between_two_tries(site: Site) -> None:
    site.put("old", b"old")
    change = Changes(site, lambda: site.server.put(BUCKET, "old", b"theirs"))
    with another(site, sleep=change) as storage:
        site.server.faults.add(reply(500), "PutObject")
        with pytest.raises(PreconditionFailedError):
            storage.replace("old", b"ours", md5(b"old"))
    assert site.objects == {"old": b"theirs"}


@pytest.mark.parametrize("repeatable", [True, False])
@pytest.mark.parametrize(
    "fault", [reset("applied"), error_200(applied=True), reply(500, applied=True)], ids=repr
)
def test_a_lost_answer_to_a_completion_is_success(site: Site, fault: Fault, repeatable: bool) -> None:
    site.server.settings.repeatable_complete = repeatable
    site.server.faults.add(fault, "CompleteMultipartUpload")
    assert site.storage.create("new", LARGE) is True
    site.server.faults.add(fault, "CompleteMultipartUpload")
    assert site.storage.write_stream("more", reader_of(LARGE))
    assert site.fired == 2
    assert same(site.objects, {"more": LARGE, "new": LARGE})
    assert not site.server.uploads(BUCKET)


@pytest.mark.parametrize("checksum", ["crc32", "sha256"])
def test_a_changed_byte_of_an_answer_is_found(site: Site, checksum: str, tmp_path: Path) -> None:
    with another(site, checksum=checksum) as storage:
        storage.write("old", OLD)
        site.server.faults.add(corrupt_response(1234), "GetObject", times=None)
        with pytest.raises(IntegrityError):
            storage.read("old")
        for read in (read_all, read_by_lines, download):
            with pytest.raises(IntegrityError):
                read(storage, tmp_path)
        assert not (tmp_path / "down").exists()
        site.server.faults.clear()
        site.server.faults.add(corrupt_response(77), "GetObject")
        assert same(storage.read("old"), OLD)


@pytest.mark.soak
def test_a_stall_ends_in_a_second_try(site: Site) -> None:
    site.put("old", OLD)
    with another(site, io_timeout=1.0) as storage:
        for fault in (stall(3.0), stall(3.0, "response_body", 1000)):
            site.server.faults.add(fault, "GetObject")
            assert same(storage.read("old"), OLD)
        site.server.faults.add(stall(3.0), "PutObject")
        assert storage.write("old", SMALL)
        assert same(site.objects, {"old": SMALL})
        site.server.faults.add(stall(3.0, "applied"), "UploadPart", nth=2)  # the service has the part twice
        assert storage.write_stream("new", reader_of(LARGE), info=ObjectInfo("new", len(LARGE)), verify=True)
        assert same(site.objects, {"old": SMALL, "new": LARGE})
        site.server.faults.add(stall(3.0), "GetObject", times=None)
        with pytest.raises(StorageTimeoutError) as caught:
            storage.read("old")
        assert caught.value.attempts == ATTEMPTS
        assert caught.value.retryable


def test_who_asks_for_an_hour_is_not_waited_for(site: Site) -> None:
    site.server.faults.add(reply(503, retry_after="3600"), "PutObject")
    with pytest.raises(RateLimitedError) as caught:
        site.storage.write("new", b"x")
    assert caught.value.retry_after == 3600
    assert not site.naps


@pytest.mark.parametrize("verb", [verb for verb in READS if verb.name != "checksum"], ids=str)
def test_a_range_that_is_ignored_is_cut_out_of_the_whole(furnished: Site, tmp_path: Path, verb: Verb) -> None:
    furnished.server.faults.add(ignore_range(), "GetObject", times=None)
    assert same(verb.do(furnished.storage, tmp_path), verb.gives)


@pytest.mark.parametrize("shift", [-500, 500, -100_000])
def test_another_range_than_asked_for_is_never_taken_for_it(site: Site, shift: int) -> None:
    def choose(request: Request) -> None:
        asked = request.headers.get("range")
        if asked is not None:
            first, last = asked.removeprefix("bytes=").split("-")
            request.headers["range"] = f"bytes={max(0, int(first) + shift)}-{int(last) + shift}"

    with S3Server(anonymous=True) as server:
        server.create_bucket(BUCKET)
        server.put(BUCKET, "old", OLD)
        server.faults.choose = choose
        with contextlib.closing(
            storage_of(server, access_key=None, secret_key=None, anonymous=True)
        ) as storage:
            with pytest.raises(UnavailableError):
                storage.read_range("old", 150_000, 160_000)
            with contextlib.suppress(UnavailableError):  # a reader may go on from what came
                assert same(read_at(storage, 150_000), OLD[150_000:160_000])


def read_at(storage: S3Storage, position: int) -> bytes:
    with storage.open("old") as reader:
        reader.seek(position)
        return reader.read(10_000)


def test_an_object_overwritten_between_two_ranges_is_no_mixture(site: Site) -> None:
    site.put("big", bytes_of(6 * MIB, 4))
    with site.storage.open("big") as reader:
        assert reader.read(10) == bytes_of(6 * MIB, 4)[:10]
        site.put("big", bytes_of(6 * MIB, 5))
        reader.seek(4 * MIB)
        with pytest.raises(SourceChangedError):
            reader.read(10)
        with pytest.raises(SourceChangedError):
            reader.read(10)


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("verb", [READS[3], READS[4], READS[6]], ids=str)
def test_an_object_that_changes_between_break_and_resume_is_no_mixture(
    furnished: Site, tmp_path: Path, verb: Verb, gone: bool
) -> None:
    site = furnished
    change = Changes(
        site, lambda: site.storage.delete("old") if gone else site.put("old", bytes_of(len(OLD), 9))
    )
    with another(site, sleep=change) as storage:
        site.server.faults.add(reset("response_body", 100_000), "GetObject")
        with pytest.raises(SourceChangedError):
            verb.do(storage, tmp_path)
    assert not (tmp_path / "down").exists()


def test_a_whole_read_again_after_a_break_is_one_object(site: Site) -> None:
    site.put("old", OLD)
    newer = bytes_of(len(OLD) - 7, 9)
    Changes(site, lambda: site.server.put(BUCKET, "old", newer)).at("GetObject")
    site.server.faults.add(reset("response_body", 100_000), "GetObject")
    assert same(site.storage.read("old"), newer)


@pytest.mark.parametrize("how", ["rewritten", "shortened", "lengthened"])
def test_a_file_that_changes_while_it_is_sent_is_not_stored(site: Site, tmp_path: Path, how: str) -> None:
    site.put("new", OLD)
    path = tmp_path / "up"
    path.write_bytes(LARGE)

    def change() -> None:
        if how == "rewritten":
            path.write_bytes(bytes_of(len(LARGE), 8))
        else:
            os.truncate(path, len(LARGE) - 3_000_000 if how == "shortened" else len(LARGE) + 1)
        os.utime(path, ns=(1, 1))

    Changes(site, change).at("UploadPart", 1)
    with another(site, max_concurrency=1) as storage, pytest.raises((SourceChangedError, IntegrityError)):
        storage.upload(path, "new")
    assert same(site.objects, {"new": OLD})
    assert not site.server.uploads(BUCKET)


class BrokenReader(Unseekable):
    """Gives the first bytes and raises."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(LARGE[: 8 * MIB])
        self._error = error

    def readinto(self, buffer: Any, /) -> int:
        count = super().readinto(buffer)
        if not count:
            raise self._error
        return count


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), ZeroDivisionError("theirs"), OSError(5, "theirs")], ids=repr
)
def test_a_reader_that_fails_leaves_the_old_object_and_no_parts(site: Site, error: BaseException) -> None:
    site.put("new", OLD)
    with pytest.raises(type(error)) as caught:
        site.storage.write_stream("new", cast(BinaryIO, BrokenReader(error)))
    assert caught.value is error
    assert "UploadPart" in {record.operation for record in site.server.actions}
    assert same(site.objects, {"new": OLD})
    assert not site.server.uploads(BUCKET)


def interrupt(_: float) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_upload_leaves_the_old_object_and_no_parts(site: Site) -> None:
    site.put("new", OLD)
    with another(site, sleep=interrupt) as storage:
        site.server.faults.add(reply(500), "UploadPart", nth=2)
        with pytest.raises(KeyboardInterrupt):
            storage.write_stream("new", reader_of(LARGE))
    assert same(site.objects, {"new": OLD})
    assert not site.server.uploads(BUCKET)


@pytest.mark.parametrize("interrupted", [True, False])
def test_after_a_failed_read_nothing_is_left_out(site: Site, interrupted: bool) -> None:
    site.put("big", LARGE)
    nap = interrupt if interrupted else (lambda _: None)
    with another(site, sleep=nap, attempts=2) as storage, storage.open("big") as reader:
        first = reader.read(1000)
        site.server.faults.clear()
        site.server.faults.add(reset("response_body", 0), "GetObject", times=None)
        # What is under way cannot be made to fail any more, so a jump asks anew.
        reader.seek(7 * MIB)
        with pytest.raises(KeyboardInterrupt if interrupted else UnavailableError):
            reader.read(3 * MIB)
        site.server.faults.clear()
        with pytest.raises(UnavailableError):
            reader.read(10)
        reader.seek(1000)
        assert same(first + reader.read(), LARGE)


@pytest.mark.parametrize(
    "content", [LARGE, LARGE[: 9 * MIB], bytes_of(11 * MIB, 6)], ids=["same", "shorter", "other"]
)
def test_the_next_upload_takes_up_or_drops_what_could_not_be_aborted(site: Site, content: bytes) -> None:
    site.put("new", OLD)
    with another(site, attempts=1) as storage:
        site.server.faults.add(reset("before_applied"), "UploadPart", nth=2, times=None)
        site.server.faults.add(reset("before_applied"), "AbortMultipartUpload", times=None)
        with pytest.raises(UnavailableError):
            storage.write_stream("new", reader_of(LARGE))
    assert len(site.server.uploads(BUCKET)) == 1
    assert same(site.objects, {"new": OLD})
    site.server.faults.clear()
    assert site.storage.write_stream("new", reader_of(content))
    assert same(site.objects, {"new": content})
    assert not site.server.uploads(BUCKET)


@pytest.mark.parametrize("repeatable", [True, False])
def test_a_large_copy_is_whole_or_nothing(site: Site, repeatable: bool) -> None:
    site.put("old", LARGE)
    site.server.settings.repeatable_complete = repeatable
    site.server.settings.copy_limit = 6 * MIB
    try:
        Changes(site, lambda: site.server.put(BUCKET, "old", bytes_of(len(LARGE), 7))).at("UploadPartCopy", 2)
        with another(site, max_concurrency=1) as storage, pytest.raises(PreconditionFailedError):
            storage.copy("old", "new")
        assert list(site.objects) == ["old"]
        assert not site.server.uploads(BUCKET)
        for operation in ("UploadPartCopy", "CompleteMultipartUpload"):
            for fault in (reset("applied"), error_200(), error_200(applied=True)):
                site.server.faults.add(fault, operation)
                assert site.storage.copy("old", "new")
                assert same(site.objects["new"], site.objects["old"])
                assert not site.server.uploads(BUCKET)
                assert site.storage.delete("new")
        with another(site, attempts=1) as storage:
            site.server.faults.add(reply(503), "UploadPartCopy")
            site.server.faults.add(reply(500), "AbortMultipartUpload")
            with pytest.raises(RateLimitedError):
                storage.copy("old", "new")
        assert list(site.objects) == ["old"]
    finally:
        site.server.settings.copy_limit = 5 << 30


def test_twenty_mebibytes_from_a_reader_and_a_file_of_forty_survive_a_fault_of_every_part(
    site: Site, tmp_path: Path
) -> None:
    stream, file = bytes_of(20 * MIB, 11), bytes_of(40 * MIB, 12)
    path = tmp_path / "up"
    path.write_bytes(file)
    defaults = {"multipart_chunk_size": 8 * MIB, "multipart_threshold": 16 * MIB}
    faults = [
        reset("applied"),
        reset("request_body", 5 * MIB),
        corrupt_request(9),
        reply(503),
        reply(500, early=True),
    ]
    with another(site, **defaults) as storage:
        for number, fault in enumerate(faults):
            site.server.faults.add(fault, "UploadPart", nth=number + 1)
        assert storage.write_stream("stream", reader_of(stream))
        assert storage.upload(path, "file")
        assert site.fired == len(faults)
        assert same(site.objects, {"file": file, "stream": stream})
        for fault in (reset("response_body", 9 * MIB), truncate(3 * MIB), truncate(5 * MIB, chunked=True)):
            site.server.faults.add(fault, "GetObject", key="file")
        assert storage.download("file", path)
        assert site.fired == len(faults) + 3
        assert same(path.read_bytes(), file)
    assert not site.server.uploads(BUCKET)


def test_where_no_thread_can_be_started_an_upload_fails_and_does_not_hang(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "storage-backend-s3":
            raise RuntimeError("can't start new thread")
        start(thread)

    site.put("new", OLD)
    with another(site) as storage:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            storage.write_stream("new", reader_of(LARGE))
        assert same(site.objects, {"new": OLD})
        assert not site.server.uploads(BUCKET)
        monkeypatch.undo()
        assert storage.write_stream("new", reader_of(LARGE))
        assert same(site.objects, {"new": LARGE})
