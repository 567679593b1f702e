"""What is told while objects are under way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, Literal, Self, cast

import pytest
from typing_extensions import override

from storage_backend import MemoryStorage, UnavailableError, sync, verify
from storage_backend.transfer import Event
from storage_backend.transfer.in_flight import host_of
from storage_backend.transfer.progress import SILENCE, WINDOW, RateEstimator, StallDetector

PIECE = 100_000
PIECES = 4


class Told:
    """Keeps the fields of "progress" events, and lets others wait for one."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []
        self._changed = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._changed:
            if event.kind == "progress":
                self.all.append(event.fields)
                self._changed.notify_all()

    def wait(self, met: Callable[[dict[str, Any]], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: bool(self.all) and met(self.all[-1]), 30)

    @property
    def bytes(self) -> list[int]:
        return [fields["bytes"] for fields in self.all]


class Slow(MemoryStorage):
    """Goes on reading only once it was told how far it is.

    Args:
        told: of the transfer.
        breaks: how many readers break off before their last piece.
    """

    def __init__(self, told: Told, breaks: int = 0) -> None:
        super().__init__()
        self.told = told
        self.breaks = breaks

    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        return cast(BinaryIO, _SlowReader(self)) if mode == "rb" else super().open(identifier, mode)

    @override
    def read_many(self, identifiers: Iterable[str], **keywords: Any) -> Iterator[tuple[str, bytes]]:
        read = 0
        for identifier, content in super().read_many(identifiers):
            yield identifier, content
            read += len(content)
            self.told.wait(lambda fields, least=read: fields["bytes"] >= least)  # type: ignore[misc]  # bound now


class _SlowReader:
    def __init__(self, storage: Slow) -> None:
        self._storage = storage
        self._read = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, size: int = -1, /) -> bytes:
        told = self._storage.told
        if self._read:
            told.wait(lambda fields: fields["bytes"] >= self._read)
        if self._read == (PIECES - 1) * PIECE and self._storage.breaks:
            self._storage.breaks -= 1
            raise UnavailableError("the link broke")
        if self._read == PIECES * PIECE:
            return b""
        self._read += PIECE
        return b"x" * PIECE


class Streamed(MemoryStorage):
    """Takes what it is given piece by piece."""

    @override
    def write_stream(self, identifier: str, reader: BinaryIO, **keywords: Any) -> bool:
        pieces = []
        while piece := reader.read(PIECE):
            pieces.append(piece)
        return self.write(identifier, b"".join(pieces))


@pytest.mark.parametrize("breaks", [0, 1])
def test_bytes_move_inside_an_object_and_are_counted_once(breaks: int) -> None:
    told = Told()
    source = Slow(told, breaks)
    source.write("large", b"x" * PIECE * PIECES)
    report = sync(source, Streamed(), verify="none", on_event=told, batch_bytes=1)
    assert report.ok
    assert set(range(PIECE, PIECES * PIECE, PIECE)) <= set(told.bytes)
    assert told.bytes == sorted(told.bytes)
    assert told.bytes[-1] == report.bytes == PIECES * PIECE
    under_way = told.all[told.bytes.index(2 * PIECE)]
    assert (under_way["done"], under_way["planned_bytes"], under_way["listed"]) == (0, PIECES * PIECE, 1)
    assert under_way["eta"] > 0
    assert under_way["rate"] > 0


def test_objects_of_a_batch_are_counted_as_they_are_read() -> None:
    told = Told()
    source = Slow(told)
    source.write_many((f"{number}", b"x" * 1000) for number in range(3))
    target = MemoryStorage()
    report = sync(source, target, on_event=told)
    assert report.ok
    assert {1000, 2000, 3000} <= set(told.bytes)
    assert told.all[told.bytes.index(2000)]["done"] == 0


def test_a_comparison_counts_each_object_once_for_both_sides() -> None:
    told = Told()
    source, target = MemoryStorage(), MemoryStorage()
    for side in (source, target):
        side.write_many([("large", b"x" * 10_000), *((f"{number}", b"x" * 100) for number in range(9))])
    report = verify(source, target, on_event=told, batch_bytes=1000)
    assert report.ok
    assert told.bytes[-1] == report.bytes == 10_900
    assert max(told.bytes) == 10_900


def test_what_is_deleted_is_told() -> None:
    told = Told()
    source, target = MemoryStorage(), MemoryStorage()
    source.write("kept", b"1")
    target.write_many((f"{number}", b"") for number in range(5))
    assert sync(source, target, delete=True, on_event=told).ok
    assert told.all[-1]["deleted"] == 5


def test_what_a_listener_raises_ends_the_transfer() -> None:
    class NoMoreError(Exception):
        pass

    def listen(event: Event) -> None:
        if event.kind == "progress":
            told(event)
            raise NoMoreError

    told = Told()
    source = Slow(told)
    source.write("large", b"x" * PIECE * PIECES)
    with pytest.raises(NoMoreError):
        sync(source, Streamed(), on_event=listen, batch_bytes=1)
    assert "storage-progress" not in {thread.name for thread in threading.enumerate()}


def test_a_rate_is_of_the_last_seconds() -> None:
    pace = RateEstimator()
    assert pace.of(1.0, 1000, 0, 10_000, 1) == {"rate": 1000, "eta": 9.0}
    pace.of(100.0, 5000, 0, 10_000, 1)
    pace.of(100.0 + WINDOW, 5000, 0, 10_000, 1)
    assert pace.of(105.0 + WINDOW, 7000, 0, 10_000, 1)["rate"] in {133, 400}
    assert pace.of(300.0, 10_000, 1, 10_000, 1)["rate"] > 0


def test_an_eta_goes_by_objects_where_no_bytes_are_left_and_is_left_out_where_nothing_moves() -> None:
    assert RateEstimator().of(5.0, 0, 5, 0, 10)["eta"] == 5.0
    assert RateEstimator().of(5.0, 100, 5, 100, 10)["eta"] == 5.0
    assert "eta" not in RateEstimator().of(5.0, 0, 0, 100, 10)
    assert "eta" not in RateEstimator().of(5.0, 100, 10, 100, 10)


def test_silence_is_what_lasts() -> None:
    silence = StallDetector()
    assert silence.lasting((1, 2), 10.0) == 0
    assert silence.lasting((1, 2), 10.0 + SILENCE - 0.1) == 0
    assert silence.lasting((1, 2), 22.0) == 12.0
    assert silence.lasting((1, 3), 22.2) == 0


@pytest.mark.parametrize(
    ("location", "host"),
    [
        ("ssh://me@db.example:22/data", "db.example"),
        ("ssh://me@one:22,[::1]:2222/~/x", "one, ::1"),
        ("s3://bucket/prefix?region=eu-west-1", "s3://bucket"),
        ("s3://bucket?endpoint_url=https://minio.example:9000", "minio.example"),
        ("postgresql://me@[fe80::1]:5432/db#papers", "fe80::1"),
        ("sqlite:////data/archive.db", "/data/archive.db"),
        ("file:///data/papers", "/data/papers"),
        ("fallback(ssh://a:22/x|file:///y)", "fallback(ssh://a:22/x|file:///y)"),
        ("MemoryStorage", "MemoryStorage"),
        ("//[", "//["),
    ],
)
def test_a_host_is_named_by_the_location(location: str, host: str) -> None:
    assert host_of(location) == host
