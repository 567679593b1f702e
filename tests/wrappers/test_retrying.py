"""RetryingStorage: what fails for a moment is done all the same, once."""

import io
import itertools
import logging
import pickle
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import pytest
from typing_extensions import Buffer, override

from storage_backend import (
    AccessDeniedError,
    BatchError,
    BucketNotFoundError,
    ConfigurationError,
    InvalidIdentifierError,
    LocalStorage,
    MemoryStorage,
    NotFoundError,
    ObjectInfo,
    PrefixedStorage,
    QuotaExceededError,
    RateLimitedError,
    RetryingStorage,
    SourceChangedError,
    StorageBackend,
    StorageError,
    StorageTimeoutError,
    UnavailableError,
)
from storage_backend.base import Item
from storage_backend.scanning import OnSkip
from storage_backend.streams import HashingReader, sha256
from storage_backend.testing import ConformanceSuite, FaultyStorage, Source, Subject
from tests.seven import Careless
from tests.topics import ObjectTopics
from tests.wrappers.test_conformance import LACKS

SEVEN_LACKS = {
    "content_type": "it has no place for one",
    "errors": "it raises built-in errors",
    "modified": "it has no place for one",
    "refusals": "it takes any str",
    "long names": "it takes any str",
}


CONDITIONAL = {"create", "replace", "delete", "move"}
"""What may be tried again, or finds nothing the second time, only if it certainly did nothing the first time."""


def no_sleep(seconds: float) -> None:
    assert seconds >= 0


class Breaking(io.RawIOBase):
    """A reader that gives something once, and then is gone."""

    def __init__(self, inner: BinaryIO) -> None:
        self._inner = inner
        self._left = 1

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def close(self) -> None:
        self._inner.close()
        super().close()

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._inner.seek(offset, whence)

    @override
    def readinto(self, buffer: Buffer, /) -> int:
        if not self._left:
            raise UnavailableError("the connection broke")
        self._left -= 1
        view = memoryview(buffer).cast("B")
        data = self._inner.read(len(view))
        view[: len(data)] = data
        return len(data)


FLAKY_LACKS = {"whole reads": "a broken reader of an object that has changed is refused"}


def breaking(items: Iterable[Any], count: int) -> Iterator[Any]:
    yield from itertools.islice(items, count)
    raise UnavailableError("the connection broke")


class Flaky(FaultyStorage):
    """Of three calls of a method two fail before they begin, and what gives a stream breaks it soon."""

    @override
    def _begin(self, method: str, *arguments: Any) -> Any:
        faults = super()._begin(method, *arguments)
        if self.count(method) % 3:
            kind = RateLimitedError if method in CONDITIONAL else UnavailableError
            raise kind(f"{method} failed")
        return faults

    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        stream = super().open(identifier, mode)
        return stream if mode == "wb" else cast(BinaryIO, Breaking(stream))

    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        found = list(super().scan(prefix, on_skip=on_skip))
        return breaking(found, 40) if self.count("scan") % 2 else iter(found)

    @override
    def read_many(self, identifiers: Iterable[str], **_: Any) -> Iterator[tuple[str, bytes]]:
        found = super().read_many(identifiers)
        return breaking(found, 40) if self.count("read_many") % 2 else found


@pytest.fixture
def quiet() -> Iterator[None]:
    """Retries are told, and a scan that hears of nothing is to have told nothing."""
    logger = logging.getLogger("storage_backend.wrappers.retrying")
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(logging.NOTSET)


class TestRetryingCareless(ObjectTopics):
    @pytest.fixture
    def subject(self) -> Subject:
        storage = RetryingStorage(PrefixedStorage(Careless(), "p"), sleep=no_sleep)
        lacks = {k: v for k, v in SEVEN_LACKS.items() if k not in {"refusals", "long names"}}
        return Subject(make=lambda: storage, lacks={**lacks, **LACKS})


@pytest.mark.usefixtures("quiet")
class TestRetryingFlakyMemory(ObjectTopics):
    @pytest.fixture
    def subject(self) -> Subject:
        storage = RetryingStorage(Flaky(MemoryStorage()), attempts=100, sleep=no_sleep)
        return Subject(make=lambda: storage, lacks={**LACKS, **FLAKY_LACKS})


@pytest.mark.usefixtures("quiet")
class TestRetryingFlakyLocal(ConformanceSuite):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        def make() -> StorageBackend:
            return RetryingStorage(Flaky(Tagged(tmp_path / "base")), attempts=100, sleep=no_sleep)

        return Subject(make, lacks={"content_type": "a file has no place for one", **FLAKY_LACKS})


class Tagged(LocalStorage):
    """Fresh files have times that prove nothing, so this one has etags."""

    @override
    def stat(self, identifier: str) -> ObjectInfo:
        found = super().stat(identifier)
        facts = Path(self.get_path(identifier)).stat()
        etag = f"{facts.st_ino}-{facts.st_mtime_ns}"
        return ObjectInfo(identifier, found.size, found.modified, etag)


class Recorder:
    """A sleep that takes no time."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.pauses.append(seconds)


@pytest.fixture
def memory() -> MemoryStorage:
    memory = MemoryStorage()
    for name in "abcde":
        memory.write(name, name.encode() * 10)
    return memory


@pytest.fixture
def faulty(memory: MemoryStorage) -> FaultyStorage:
    return FaultyStorage(memory)


@pytest.fixture
def slept() -> Recorder:
    return Recorder()


@pytest.fixture
def storage(faulty: FaultyStorage, slept: Recorder) -> RetryingStorage:
    return RetryingStorage(faulty, sleep=slept, random=lambda: 1.0)


CALLS: dict[str, Callable[[StorageBackend], Any]] = {
    "exists": lambda s: s.exists("a"),
    "read": lambda s: s.read("a"),
    "write": lambda s: s.write("n", b"1"),
    "list": lambda s: s.list("*"),
    "get_path": lambda s: s.get_path("a"),
    "size": lambda s: s.size("a"),
    "copy": lambda s: s.copy("a", "n"),
    "move": lambda s: s.move("a", "n"),
    "write_stream": lambda s: s.write_stream("n", io.BytesIO(b"1")),
    "stat": lambda s: s.stat("a"),
    "open": lambda s: s.open("a").read(),
    "read_range": lambda s: s.read_range("a", 1, 2),
    "delete": lambda s: s.delete("a"),
    "scan": lambda s: list(s.scan()),
    "read_many": lambda s: sorted(s.read_many(["a", "b"])),
    "write_many": lambda s: s.write_many([("n", b"1"), ("m", b"2")]),
    "delete_many": lambda s: s.delete_many(["a", "b"]),
    "checksum": lambda s: s.checksum("a"),
}


@pytest.mark.parametrize("method", sorted(CALLS))
def test_each_method_is_tried_until_it_succeeds(
    method: str, storage: RetryingStorage, faulty: FaultyStorage, slept: Recorder
) -> None:
    twin = MemoryStorage()
    for name in "abcde":
        twin.write(name, name.encode() * 10)
    expected = CALLS[method](twin)
    faulty.fail(method, times=4)
    found = CALLS[method](storage)
    if method not in {"stat", "scan"}:  # their times differ
        assert found == expected
    assert faulty.count(method) >= 5
    assert len(slept.pauses) == 4


@pytest.mark.parametrize("method", sorted(CALLS))
def test_each_method_gives_up_with_the_number_of_tries(
    method: str, storage: RetryingStorage, faulty: FaultyStorage
) -> None:
    faulty.fail(method, times=None)
    with pytest.raises(UnavailableError) as caught:
        CALLS[method](storage)
    assert caught.value.attempts == 5
    assert faulty.count(method) == 5


@pytest.mark.parametrize("method", sorted(CALLS))
@pytest.mark.parametrize("kind", [AccessDeniedError, KeyboardInterrupt, ZeroDivisionError])
def test_what_is_not_for_a_moment_passes_at_once(
    method: str, kind: type[BaseException], storage: RetryingStorage, faulty: FaultyStorage, slept: Recorder
) -> None:
    faulty.fail(method, error=kind, times=None)
    with pytest.raises(kind):
        CALLS[method](storage)
    assert faulty.count(method) == 1
    assert slept.pauses == []


def test_download_upload_and_flush_are_tried_again(
    storage: RetryingStorage, faulty: FaultyStorage, tmp_path: Path
) -> None:
    for method in ("download", "upload"):
        faulty.fail(method, times=2)
    assert storage.download("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"a" * 10
    assert storage.upload(tmp_path / "a", "n")
    assert storage.read("n") == b"a" * 10
    local = FaultyStorage(LocalStorage(tmp_path / "base"))
    for method in ("flush", "get_url"):
        local.fail(method, times=2)
    again = RetryingStorage(local, sleep=no_sleep)
    again.write("a", b"")
    assert again.flush() is True
    assert again.get_url("a").startswith("file://")


def test_a_users_error_that_says_retryable_is_tried_again(slept: Recorder) -> None:
    class BusyError(Exception):
        retryable = True

    class User(Careless):
        tries = 0

        @override
        def read(self, identifier: str) -> bytes:
            self.tries += 1
            if self.tries < 3:
                raise BusyError("password=hunter2")
            return super().read(identifier)

    user = User()
    user.objects["a"] = b"1"
    assert RetryingStorage(user, sleep=slept).read("a") == b"1"
    user.tries = -10
    with pytest.raises(BusyError):
        RetryingStorage(user, sleep=slept).read("a")
    assert user.tries == -5


def test_retryable_must_be_true_itself(slept: Recorder) -> None:
    error = RuntimeError("no")
    error.retryable = "yes"  # type: ignore[attr-defined]  # what is tested
    faulty = FaultyStorage(MemoryStorage())
    faulty.fail("read", error=error, times=None)
    with pytest.raises(RuntimeError):
        RetryingStorage(faulty, sleep=slept).read("a")
    assert slept.pauses == []


@pytest.mark.parametrize(("attempts", "calls", "total"), [(5, 2, 6), (3, 1, 3), (7, 3, 9), (1, 1, 3)])
def test_tries_beneath_count(attempts: int, calls: int, total: int) -> None:
    class Thrice(MemoryStorage):
        calls = 0

        @override
        def read(self, identifier: str) -> bytes:
            self.calls += 1
            raise StorageTimeoutError("silent", attempts=3)

    thrice = Thrice()
    with pytest.raises(StorageTimeoutError) as caught:
        RetryingStorage(thrice, attempts=attempts, sleep=no_sleep).read("a")
    assert thrice.calls == calls
    assert caught.value.attempts == total


def test_nested_wrappers_do_not_multiply(faulty: FaultyStorage) -> None:
    inner = RetryingStorage(faulty, sleep=no_sleep)
    faulty.fail("read", times=None)
    with pytest.raises(UnavailableError) as caught:
        RetryingStorage(inner, sleep=no_sleep).read("a")
    assert faulty.count("read") == 5
    assert caught.value.attempts == 5


def test_a_final_error_has_the_number_of_all_tries(storage: RetryingStorage, faulty: FaultyStorage) -> None:
    faulty.fail("read", times=2)
    with pytest.raises(NotFoundError) as caught:
        storage.read("gone")
    assert caught.value.attempts == 3


def test_pauses_double_up_to_the_longest(faulty: FaultyStorage, slept: Recorder) -> None:
    faulty.fail("read", times=7)
    storage = RetryingStorage(faulty, 8, 1, 10, sleep=slept, random=lambda: 0.5)
    storage.read("a")
    assert slept.pauses == [0.5, 1, 2, 4, 5, 5, 5]


def test_pauses_are_random_by_default(faulty: FaultyStorage, slept: Recorder) -> None:
    faulty.fail("read", times=400)
    RetryingStorage(faulty, 500, 1, 1, sleep=slept).read("a")
    assert all(0 <= pause <= 1 for pause in slept.pauses)
    assert min(slept.pauses) < 0.2
    assert max(slept.pauses) > 0.8


@pytest.mark.soak
def test_a_huge_number_of_tries_has_pauses_still(faulty: FaultyStorage, slept: Recorder) -> None:
    faulty.fail("read", times=3000)
    RetryingStorage(faulty, 4000, sleep=slept, random=lambda: 1.0).read("a")
    assert slept.pauses[-1] == 15


@pytest.mark.parametrize(
    ("asked", "pause"), [(3, 3.2), (60, 60.2), (None, 0.2), (-5, 0.2), (float("nan"), 0.2)]
)
def test_waits_at_least_as_long_as_asked(
    asked: float | None, pause: float, storage: RetryingStorage, faulty: FaultyStorage, slept: Recorder
) -> None:
    faulty.fail("read", error=RateLimitedError("slow down", retry_after=asked))
    storage.read("a")
    assert slept.pauses == [pause]


@pytest.mark.parametrize("asked", [61, 86400, float("inf")])
def test_does_not_wait_for_ever(
    asked: float, storage: RetryingStorage, faulty: FaultyStorage, slept: Recorder
) -> None:
    faulty.fail("read", error=RateLimitedError("tomorrow", retry_after=asked))
    with pytest.raises(RateLimitedError):
        storage.read("a")
    assert slept.pauses == []


def test_a_longer_longest_waits_longer(faulty: FaultyStorage, slept: Recorder) -> None:
    faulty.fail("read", error=RateLimitedError("slow down", retry_after=100))
    RetryingStorage(faulty, longest=120, sleep=slept).read("a")
    assert slept.pauses[0] >= 100


@pytest.mark.parametrize(
    ("arguments", "kind", "parameter"),
    [
        ({"attempts": 0}, ConfigurationError, "attempts"),
        ({"attempts": -1}, ConfigurationError, "attempts"),
        ({"attempts": 1.5}, TypeError, None),
        ({"attempts": True}, TypeError, None),
        ({"first": -1}, ConfigurationError, "first"),
        ({"first": "1"}, TypeError, None),
        ({"longest": float("nan")}, ConfigurationError, "longest"),
        ({"longest": float("inf")}, ConfigurationError, "longest"),
        ({"longest": True}, TypeError, None),
    ],
)
def test_refuses_bad_parameters(arguments: Any, kind: type[Exception], parameter: str | None) -> None:
    with pytest.raises(kind) as caught:
        RetryingStorage(MemoryStorage(), **arguments)
    assert getattr(caught.value, "parameter", None) == parameter


def test_refuses_what_is_no_backend() -> None:
    with pytest.raises(TypeError):
        RetryingStorage("/data")  # type: ignore[arg-type]  # what is tested


def test_each_retry_is_a_warning_without_a_users_text(
    storage: RetryingStorage, faulty: FaultyStorage, caplog: pytest.LogCaptureFixture
) -> None:
    error = RuntimeError("password=hunter2")
    error.retryable = True  # type: ignore[attr-defined]  # a user's error
    faulty.fail("read", error=error, times=2)
    faulty.fail("read", nth=3)
    storage.read("a")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert "hunter2" not in caplog.text
    assert "RuntimeError" in caplog.text
    assert "read of 'a' in MemoryStorage failed, attempt 3 of 5" in caplog.text


def test_pickles_with_its_numbers() -> None:
    storage = RetryingStorage(MemoryStorage(), 7, 0.5, 20, sleep=no_sleep)
    copy = pickle.loads(pickle.dumps(storage))
    assert (copy.attempts, copy.first, copy.longest) == (7, 0.5, 20)
    # No generator's state, or all copies would wait for the same time.
    assert len(pickle.dumps(storage)) < 1500


# Sources


def test_a_source_is_written_again_from_where_it_stood(
    storage: RetryingStorage, faulty: FaultyStorage, memory: MemoryStorage
) -> None:
    for call in (storage.write, storage.write_stream):
        reader = io.BytesIO(b"skipped content")
        reader.seek(8)
        faulty.cut("write_stream", at=3, times=2)
        assert call("n", reader) is True
        assert memory.read("n") == b"content"
        assert not reader.closed
        assert reader.tell() == 15


def test_a_lost_answer_to_a_write_is_written_again(
    storage: RetryingStorage, faulty: FaultyStorage, memory: MemoryStorage
) -> None:
    faulty.lose("write_stream")
    faulty.lose("write")
    assert storage.write_stream("n", io.BytesIO(b"1")) is True
    assert storage.write("m", b"2") is True
    assert (memory.read("n"), memory.read("m")) == (b"1", b"2")


def test_a_source_that_cannot_seek_is_not_read_on(
    storage: RetryingStorage, faulty: FaultyStorage, memory: MemoryStorage, slept: Recorder
) -> None:
    faulty.cut("write_stream", at=3)
    source = Source(b"content")
    with pytest.raises(UnavailableError) as caught:
        storage.write_stream("n", source.as_binary())
    assert caught.value.attempts == 1
    assert slept.pauses == []
    assert not memory.exists("n")


def test_a_source_that_nothing_was_read_of_is_given_again(
    storage: RetryingStorage, faulty: FaultyStorage, memory: MemoryStorage
) -> None:
    faulty.fail("write_stream", times=3)
    assert storage.write_stream("n", Source(b"content").as_binary()) is True
    assert memory.read("n") == b"content"


def test_a_first_read_that_fails_counts_as_read(storage: RetryingStorage) -> None:
    class Pipe:
        rest = b"12"

        def read(self, size: int = -1) -> bytes:
            taken, self.rest = self.rest[:1], self.rest[1:]
            if taken == b"1":
                raise UnavailableError("took one, and broke")
            return taken

    for reader in (Pipe(), HashingReader(cast(BinaryIO, Pipe()))):
        with pytest.raises(UnavailableError):
            storage.write_stream("n", cast(BinaryIO, reader))
        assert not storage.exists("n")


def test_a_reader_that_digests_stays_one(memory: MemoryStorage) -> None:
    class Knows(MemoryStorage):
        @override
        def write_stream(
            self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
        ) -> bool:
            assert isinstance(reader, HashingReader)
            super().write_stream(identifier, cast(BinaryIO, reader), info=info, verify=verify)
            assert (reader.size, reader.hexdigest()) == (7, sha256(b"content"))
            return True

    source = HashingReader(Source(b"content").as_binary())
    RetryingStorage(Knows()).write_stream("n", cast(BinaryIO, source))
    assert source.hexdigest() == sha256(b"content")


def test_a_seekable_source_that_no_longer_seeks_is_not_read_on(
    storage: RetryingStorage, faulty: FaultyStorage, memory: MemoryStorage
) -> None:
    class Stuck(io.BytesIO):
        def seek(self, offset: int, whence: int = 0, /) -> int:
            raise OSError("stuck")

    faulty.cut("write_stream", at=3)
    with pytest.raises(UnavailableError):
        storage.write_stream("n", Stuck(b"content"))
    assert not memory.exists("n")


def test_a_writer_is_published_again(
    storage: RetryingStorage, faulty: FaultyStorage, memory: MemoryStorage
) -> None:
    faulty.cut("write_stream", at=2)
    faulty.lose("write_stream", nth=2)
    with storage.open("n", "wb") as writer:
        writer.write(b"content")
    assert memory.read("n") == b"content"


def test_a_bad_identifier_is_refused_when_a_writer_is_opened(storage: RetryingStorage) -> None:
    with pytest.raises(InvalidIdentifierError):
        storage.open("../a", "wb")


# Readers


@pytest.fixture
def large(memory: MemoryStorage) -> bytes:
    content = b"".join(b"line %d\n" % number for number in range(2000))
    memory.write("large", content)
    return content


def cuts(faulty: FaultyStorage, *places: int) -> None:
    """Each opening breaks at the next of *places*."""
    for number, place in enumerate(places, 1):
        faulty.cut("open", at=place, nth=number)


def test_a_broken_reader_goes_on_at_its_offset(
    storage: RetryingStorage, faulty: FaultyStorage, large: bytes
) -> None:
    for read in (
        lambda reader: reader.read(),
        b"".join,
        lambda reader: b"".join(iter(lambda: reader.read(700), b"")),
        lambda reader: io.TextIOWrapper(reader, newline="").read().encode(),
    ):
        cuts(faulty, 100, 100, 5000, 5001, 9000, 9000, len(large))
        with storage.open("large") as reader:
            assert read(reader) == large
        faulty.heal()


def test_a_broken_reader_seeks_and_reads_into(
    storage: RetryingStorage, faulty: FaultyStorage, large: bytes
) -> None:
    cuts(faulty, 5, 5, 5, 5)
    with storage.open("large") as reader:
        assert reader.seek(-10, io.SEEK_END) == len(large) - 10
        assert reader.read() == large[-10:]
        assert reader.seek(3) == 3
        assert reader.seek(2, io.SEEK_CUR) == 5
        buffer = bytearray(10)
        assert cast(Any, reader).readinto(buffer) == 10
        assert bytes(buffer) == large[5:15]
        assert reader.readline() == large[15:].split(b"\n")[0] + b"\n"
        assert reader.tell() == large.index(b"\n", 15) + 1


def test_attempts_are_counted_anew_after_progress(
    storage: RetryingStorage, faulty: FaultyStorage, large: bytes
) -> None:
    cuts(faulty, *range(100, 6000, 100))
    with storage.open("large") as reader:
        assert reader.read() == large
    assert faulty.count("open") > 20


def test_a_reader_without_progress_gives_up_and_may_be_asked_again(
    storage: RetryingStorage, faulty: FaultyStorage, large: bytes
) -> None:
    faulty.cut("open", at=100, times=6)
    with storage.open("large") as reader:
        assert reader.read(100) == large[:100]
        with pytest.raises(UnavailableError) as caught:
            reader.read(1)
        assert caught.value.attempts == 5
        assert faulty.count("open") == 5
        assert reader.tell() == 100
        assert reader.read() == large[100:]


def test_a_changed_object_is_not_read_on(
    storage: RetryingStorage, faulty: FaultyStorage, memory: MemoryStorage, large: bytes
) -> None:
    for change in (large[::-1], large + b"1", large):
        memory.write("large", large)
        cuts(faulty, 100)
        with storage.open("large") as reader:
            assert reader.read(100) == large[:100]
            memory.write("large", change)
            with pytest.raises(SourceChangedError) as caught:
                reader.read()
            assert caught.value.identifier == "large"
            assert caught.value.retryable is False
        faulty.heal()


def test_a_change_between_looking_and_reopening_is_noticed(
    storage: RetryingStorage, faulty: FaultyStorage, memory: MemoryStorage, large: bytes
) -> None:
    cuts(faulty, 100)
    with storage.open("large") as reader:
        reader.read(100)
        faulty.before("stat", lambda: memory.write("large", b"x" * len(large)))
        with pytest.raises(SourceChangedError):
            reader.read()


def test_a_change_between_looking_and_opening_is_noticed(
    storage: RetryingStorage, faulty: FaultyStorage, memory: MemoryStorage, large: bytes
) -> None:
    cuts(faulty, 100)
    faulty.before("open", lambda: memory.write("large", large))
    with storage.open("large") as reader:
        reader.read(100)
        with pytest.raises(SourceChangedError):
            reader.read()


def test_a_reader_that_has_given_nothing_takes_the_object_as_it_is(
    storage: RetryingStorage, faulty: FaultyStorage, memory: MemoryStorage, large: bytes
) -> None:
    cuts(faulty, 0)
    with storage.open("large") as reader:
        memory.write("large", b"new")
        assert reader.read() == b"new"


def test_a_deleted_object_is_not_read_on(
    storage: RetryingStorage, faulty: FaultyStorage, memory: MemoryStorage, large: bytes
) -> None:
    cuts(faulty, 100)
    with storage.open("large") as reader:
        reader.read(100)
        memory.delete("large")
        with pytest.raises(NotFoundError):
            reader.read()


class Timed(MemoryStorage):
    """Like a file system: no etag."""

    @override
    def stat(self, identifier: str) -> ObjectInfo:
        found = super().stat(identifier)
        return ObjectInfo(identifier, found.size, found.modified)


@pytest.mark.parametrize(("age", "goes_on"), [(2.5, True), (1.5, False), (-100, False)])
def test_size_and_time_prove_something_when_the_time_is_old_enough(age: float, goes_on: bool) -> None:
    timed = Timed()
    modified = datetime(2024, 1, 1, tzinfo=UTC)
    timed.write_stream("a", io.BytesIO(b"0123456789"), info=ObjectInfo("a", modified=modified))
    faulty = FaultyStorage(timed)
    faulty.cut("open", at=3)
    storage = RetryingStorage(faulty, sleep=no_sleep, clock=lambda: modified.timestamp() + age)
    with storage.open("a") as reader:
        assert reader.read(3) == b"012"
        if goes_on:
            assert reader.read() == b"3456789"
            return
        with pytest.raises(SourceChangedError, match="cannot be shown") as caught:
            reader.read()
        assert caught.value.retryable is True


def test_another_size_or_time_is_another_object() -> None:
    timed = Timed()
    old, new = datetime(2001, 1, 1, tzinfo=UTC), datetime(2002, 1, 1, tzinfo=UTC)
    for content, modified in ((b"9876543210", new), (b"987654321", old)):
        timed.write_stream("a", io.BytesIO(b"0123456789"), info=ObjectInfo("a", modified=old))
        faulty = FaultyStorage(timed)
        faulty.cut("open", at=3)
        with RetryingStorage(faulty, sleep=no_sleep).open("a") as reader:
            reader.read(3)
            timed.write_stream("a", io.BytesIO(content), info=ObjectInfo("a", modified=modified))
            with pytest.raises(SourceChangedError, match="changed since"):
                reader.read()


def test_a_size_alone_proves_nothing() -> None:
    user = Careless()
    user.objects["a"] = b"0123456789"
    faulty = FaultyStorage(user)
    faulty.cut("open", at=3)
    with RetryingStorage(faulty, sleep=no_sleep).open("a") as reader:
        reader.read(3)
        with pytest.raises(SourceChangedError):
            reader.read()


def test_reading_is_possible_where_looking_is_denied(faulty: FaultyStorage, large: bytes) -> None:
    faulty.fail("stat", error=AccessDeniedError, times=None)
    faulty.cut("open", at=50)
    storage = RetryingStorage(faulty, sleep=no_sleep)
    with storage.open("large") as reader:
        assert reader.read(50) == large[:50]
        with pytest.raises(SourceChangedError):
            reader.read()
    with storage.open("large") as reader:
        assert reader.read() == large


def test_a_seven_method_class_is_not_looked_at_before_it_is_read() -> None:
    class Costly(Careless):
        @override
        def size(self, identifier: str) -> int:
            raise AssertionError("the whole object is fetched for that")

    user = Costly()
    user.objects["a"] = b"1"
    with RetryingStorage(user).open("a") as reader:
        assert reader.read() == b"1"


def test_a_download_goes_on_where_the_backend_has_none_of_its_own(tmp_path: Path) -> None:
    class Broken(MemoryStorage):
        opened = 0

        @override
        def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
            self.opened += 1
            return cast(BinaryIO, Breaking(super().open(identifier, mode)))

    broken = Broken()
    broken.write("a", bytes(20 << 20))
    assert RetryingStorage(broken, attempts=2, sleep=no_sleep).download("a", tmp_path / "a")
    assert (tmp_path / "a").stat().st_size == 20 << 20
    assert broken.opened > 2


def test_an_interrupted_read_passes_and_may_be_repeated(
    storage: RetryingStorage, faulty: FaultyStorage, large: bytes
) -> None:
    faulty.cut("open", at=100, error=KeyboardInterrupt)
    with storage.open("large") as reader:
        reader.read(10)
        with pytest.raises(KeyboardInterrupt):
            reader.read()
        assert reader.read() == large[10:]


def test_a_bad_seek_leaves_the_reader_usable() -> None:
    timed = Timed()  # it could not be opened again
    timed.write("a", b"0123456789")
    faulty = FaultyStorage(timed)
    faulty.cut("open", at=100)
    with RetryingStorage(faulty, sleep=no_sleep).open("a") as reader:
        assert reader.readline(3) == b"012"
        for bad in ((-1,), (-4, io.SEEK_CUR), (0, 7)):
            with pytest.raises((ValueError, OSError)):
                reader.seek(*bad)
            assert reader.tell() == 3
        assert reader.read(4) == b"3456"
        assert reader.seek(-5, io.SEEK_CUR) == 2
        assert reader.readline(2) == b"23"
        assert faulty.count("open") == 1


# Scans


def test_a_broken_scan_goes_on_after_its_last_object(
    storage: RetryingStorage, faulty: FaultyStorage, memory: MemoryStorage
) -> None:
    for name in ("a/b", "a-b", "é", "😀", "\uff5e"):
        memory.write(name, b"")
    everything = [info.identifier for info in memory.scan()]
    for number, at in enumerate((0, 1, 1, 3, 4, 4, 7, 10, 10), 1):
        faulty.cut("scan", at=at, nth=number)
    assert [info.identifier for info in storage.scan()] == everything
    level = list(memory.scan_level())
    for number, at in enumerate((1, 2, 5), 1):
        faulty.cut("scan", at=at, nth=number)
    assert list(storage.scan_level()) == level


def test_a_scan_goes_on_though_its_last_object_is_gone(
    storage: RetryingStorage, faulty: FaultyStorage, memory: MemoryStorage
) -> None:
    faulty.cut("scan", at=2)
    found = storage.scan()
    assert [next(found).identifier, next(found).identifier] == ["a", "b"]
    memory.delete("b")
    memory.write("aa", b"")
    memory.write("cc", b"")
    assert [info.identifier for info in found] == ["c", "cc", "d", "e"]


def test_a_scan_is_lazy_and_gives_up_without_progress(
    storage: RetryingStorage, faulty: FaultyStorage
) -> None:
    found = storage.scan()
    assert faulty.count("scan") == 0
    faulty.cut("scan", at=2, times=None)
    assert [next(found).identifier, next(found).identifier] == ["a", "b"]
    with pytest.raises(UnavailableError) as caught:
        next(found)
    assert caught.value.attempts == 5


class Skipping(MemoryStorage):
    """Has an entry that is no object before each object, and breaks after the second object for three times."""

    breaks = 3

    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        for number, info in enumerate(super().scan(prefix)):
            if on_skip is not None:
                on_skip(InvalidIdentifierError("no object", identifier=f"{info.identifier}/"))
            if number == 2 and self.breaks:
                self.breaks -= 1
                raise UnavailableError("broke")
            yield info


def test_each_skipped_entry_is_told_once() -> None:
    skipping = Skipping()
    for name in "abcde":
        skipping.write(name, b"")
    heard: list[str | None] = []
    storage = RetryingStorage(skipping, sleep=no_sleep)
    found = [info.identifier for info in storage.scan(on_skip=lambda error: heard.append(error.identifier))]
    assert found == list("abcde")
    assert heard == ["a/", "b/", "c/", "d/", "e/"]


def test_an_error_of_the_skip_callback_is_not_the_scans() -> None:
    skipping = Skipping()
    skipping.write("a", b"")
    calls = 0

    def on_skip(error: StorageError) -> None:
        nonlocal calls
        calls += 1
        raise UnavailableError("the caller's own")

    with pytest.raises(UnavailableError, match="own"):
        list(RetryingStorage(skipping, sleep=no_sleep).scan(on_skip=on_skip))
    assert calls == 1


def test_stat_of_many_asks_for_those_that_have_not_come() -> None:
    class Breaks(MemoryStorage):
        asked: list[list[str]]

        @override
        def stat_many(self, identifiers: Iterable[str]) -> Iterator[ObjectInfo]:
            wanted = list(identifiers)
            self.asked.append(wanted)
            found = super().stat_many(wanted)
            return breaking(found, 2) if len(self.asked) == 1 else found

    breaks = Breaks()
    breaks.asked = []
    for name in "abc":
        breaks.write(name, b"")
    found = RetryingStorage(breaks, sleep=no_sleep).stat_many(["a", "gone", "b", "c"])
    assert [info.identifier for info in found] == ["a", "b", "c"]
    assert breaks.asked == [["a", "gone", "b", "c"], ["gone", "c"]]


# Batches


def test_a_broken_batch_of_reads_goes_on(storage: RetryingStorage, faulty: FaultyStorage) -> None:
    for number, at in enumerate((2, 1, 0, 0, 0, 1), 1):
        faulty.cut("read_many", at=at, nth=number)
    wanted = ["a", "b", "a", "c", "d", "a", "e"]
    found = list(storage.read_many(iter(wanted)))
    assert sorted(name for name, _ in found) == sorted(wanted)


class Picky(MemoryStorage):
    """Batches in which objects fail as often as `fails` says, and then are done."""

    def __init__(self, fails: dict[str, list[Exception]]) -> None:
        super().__init__()
        self.fails = fails
        self.tried: list[str] = []

    def check(self, identifier: str) -> None:
        self.tried.append(identifier)
        if self.fails.get(identifier):
            raise self.fails[identifier].pop(0)

    @override
    def read(self, identifier: str) -> bytes:
        self.check(identifier)
        return super().read(identifier)

    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        self.check(identifier)
        return super().write_stream(identifier, reader, info=info, verify=verify)

    @override
    def delete(self, identifier: str) -> bool:
        self.check(identifier)
        return super().delete(identifier)


def busy(count: int) -> list[Exception]:
    return [UnavailableError("busy") for _ in range(count)]


def test_only_those_of_a_batch_that_failed_for_a_moment_are_tried_again() -> None:
    def fails() -> dict[str, list[Exception]]:
        return {"b": busy(2), "c": [AccessDeniedError("no")], "d": busy(9), "e": busy(4)}

    inner = Picky({})
    for name in "abcdef":
        inner.write(name, name.encode())
    storage = RetryingStorage(inner, sleep=no_sleep)
    inner.fails = fails()
    found: dict[str, bytes] = {}
    with pytest.raises(BatchError) as caught:
        found.update(storage.read_many("abcdef"))
    assert found == {name: name.encode() for name in "abef"}
    check_failures(caught.value, inner)

    inner.fails = fails()
    with pytest.raises(BatchError) as caught:
        storage.write_many((name, b"new " + name.encode()) for name in "abcdef")
    assert {name: MemoryStorage.read(inner, name) for name in "abcdef"} == {
        **{name: b"new " + name.encode() for name in "abef"},
        **{name: name.encode() for name in "cd"},
    }
    check_failures(caught.value, inner)

    inner.fails = fails()
    with pytest.raises(BatchError) as caught:
        storage.delete_many("abcdef")
    assert inner.list() == ["c", "d"]
    check_failures(caught.value, inner)


def check_failures(error: BatchError, inner: Picky) -> None:
    assert {name: (type(e), cast(StorageError, e).attempts) for name, e in error.failures.items()} == {
        "c": (AccessDeniedError, 1),
        "d": (UnavailableError, 5),
    }
    counts = {name: inner.tried.count(name) for name in "abcdef"}
    assert counts == {"a": 1, "b": 3, "c": 1, "d": 5, "e": 5, "f": 1}
    inner.tried.clear()


def test_a_full_store_stops_a_batch_at_once() -> None:
    inner = Picky({"a": [QuotaExceededError("full")]})
    with pytest.raises(QuotaExceededError):
        RetryingStorage(inner, sleep=no_sleep).write_many([("a", b""), ("b", b"")])
    assert inner.tried == ["a"]


def test_a_batch_of_writes_that_breaks_is_written_again(faulty: FaultyStorage, memory: MemoryStorage) -> None:
    class Halfway(MemoryStorage):
        broken = 3

        @override
        def write_many(self, items: Iterable[Item], *, verify: bool = False, **_: Any) -> int:
            taken = list(items)
            if self.broken:
                self.broken -= 1
                super().write_many(taken[: len(taken) // 2])
                raise UnavailableError("the connection broke")
            return super().write_many(taken, verify=verify)

    halfway = Halfway()
    storage = RetryingStorage(halfway, sleep=no_sleep)
    items: list[Item] = [(ObjectInfo("a", 1), b"1"), ("b", b"2"), ("a", b"3"), ("c", b"4")]
    assert storage.write_many(iter(items)) == 4
    assert {name: halfway.read(name) for name in halfway.list()} == {"a": b"3", "b": b"2", "c": b"4"}


def test_of_a_repeated_identifier_the_last_is_tried_again() -> None:
    inner = Picky({"a": busy(3)})
    RetryingStorage(inner, sleep=no_sleep).write_many([("a", b"1"), ("a", b"2"), ("a", b"3")])
    assert MemoryStorage.read(inner, "a") == b"3"


def test_a_failure_is_forgotten_when_a_later_group_stores_the_object() -> None:
    inner = Picky({"a": [AccessDeniedError("no")]})
    items = [("a", b"1"), *((f"{number}", b"") for number in range(2000)), ("a", b"2")]
    assert RetryingStorage(inner, sleep=no_sleep).write_many(items) == 2002
    assert MemoryStorage.read(inner, "a") == b"2"


def test_a_broken_batch_of_deletions_counts_what_is_absent(
    storage: RetryingStorage, faulty: FaultyStorage, memory: MemoryStorage
) -> None:
    faulty.lose("delete_many", times=2)
    assert storage.delete_many(["a", "b", "gone", "a"]) == 3
    assert memory.list() == ["c", "d", "e"]


# Answers that are lost


def test_a_delete_whose_answer_is_lost_is_done(
    storage: RetryingStorage, faulty: FaultyStorage, memory: MemoryStorage
) -> None:
    faulty.lose("delete")
    assert storage.delete("a") is True
    assert not memory.exists("a")
    with pytest.raises(NotFoundError):
        storage.delete("a")


def test_a_delete_that_was_certainly_not_begun_finds_nothing(
    storage: RetryingStorage, faulty: FaultyStorage
) -> None:
    faulty.fail("delete", error=RateLimitedError("slow down"))
    with pytest.raises(NotFoundError) as caught:
        storage.delete("gone")
    assert caught.value.attempts == 2


def test_a_missing_bucket_is_no_deletion(storage: RetryingStorage, faulty: FaultyStorage) -> None:
    faulty.lose("delete")
    faulty.fail("delete", nth=2, error=BucketNotFoundError("no bucket"))
    with pytest.raises(BucketNotFoundError):
        storage.delete("a")


@pytest.mark.parametrize("seek", [True, False])
def test_create_is_not_tried_again(
    storage: RetryingStorage, faulty: FaultyStorage, memory: MemoryStorage, seek: bool
) -> None:
    def content() -> Any:
        return io.BytesIO(b"1") if seek else b"1"

    faulty.lose("create")
    with pytest.raises(UnavailableError) as caught:
        storage.create("n", content())
    assert caught.value.attempts == 1
    assert faulty.count("create") == 1
    faulty.fail("create", error=RateLimitedError("slow down"), times=2)
    assert storage.create("m", content()) is True
    assert memory.read("m") == b"1"
    faulty.fail("create", error=RateLimitedError("slow down", attempts=2))
    with pytest.raises(RateLimitedError):
        storage.create("o", content())


def test_replace_is_not_tried_again(
    storage: RetryingStorage, faulty: FaultyStorage, memory: MemoryStorage
) -> None:
    etag = cast(str, memory.stat("a").etag)
    faulty.fail("replace", error=RateLimitedError("slow down"))
    second = storage.replace("a", io.BytesIO(b"2"), etag)
    assert memory.read("a") == b"2"
    faulty.lose("replace")
    with pytest.raises(UnavailableError):
        storage.replace("a", b"3", second)
    assert memory.read("a") == b"3"
    assert faulty.count("replace") == 3


def test_a_source_that_cannot_seek_is_created_from_once(
    storage: RetryingStorage, faulty: FaultyStorage, memory: MemoryStorage
) -> None:
    faulty.fail("create", error=RateLimitedError("slow down"))
    assert storage.create("n", Source(b"content").as_binary()) is True
    assert memory.read("n") == b"content"


def test_a_move_whose_answer_is_lost_is_done(
    storage: RetryingStorage, faulty: FaultyStorage, memory: MemoryStorage
) -> None:
    faulty.lose("move")
    assert storage.move("a", "b") is True
    assert memory.read("b") == b"a" * 10
    assert not memory.exists("a")


def test_a_move_of_nothing_is_not_done(storage: RetryingStorage, faulty: FaultyStorage) -> None:
    faulty.lose("move")
    with pytest.raises(NotFoundError):
        storage.move("gone", "b")


def test_a_source_that_another_took_is_not_moved(
    storage: RetryingStorage, faulty: FaultyStorage, memory: MemoryStorage
) -> None:
    faulty.fail("move")
    faulty.before("move", lambda: memory.delete("a"), nth=2)
    with pytest.raises(NotFoundError):
        storage.move("a", "n")
    memory.write("b", b"another size")
    faulty.fail("move")
    faulty.before("move", lambda: memory.delete("c"), nth=2)
    with pytest.raises(UnavailableError):  # it cannot be told
        storage.move("c", "b")
    assert memory.read("b") == b"another size"


def test_a_copy_whose_answer_is_lost_is_made_again(
    storage: RetryingStorage, faulty: FaultyStorage, memory: MemoryStorage
) -> None:
    faulty.lose("copy", times=2)
    assert storage.copy("a", "n") is True
    assert memory.read("n") == b"a" * 10
