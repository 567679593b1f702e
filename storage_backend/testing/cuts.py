"""Truncated readers, writers and iterators, for FaultyStorage."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, TypeVar, cast

from typing_extensions import Buffer, override

from storage_backend.errors import UnavailableError
from storage_backend.streams import SeekableRaw

T = TypeVar("T")


@dataclass(frozen=True)
class Cut:
    """The offset at which a stream fails, and its error."""

    at: int
    error: BaseException | type[BaseException]

    def reader(self, inner: BinaryIO, *, closes: bool = False) -> BinaryIO:
        return cast(BinaryIO, _CutReader(inner, self, closes))

    def items(self, inner: Iterator[T]) -> Iterator[T]:
        for number, item in enumerate(inner):
            if number == self.at:
                raise self.error
            yield item
        raise self.error


class _CutReader(SeekableRaw):
    """Gives the first `cut.at` bytes, then raises."""

    def __init__(self, inner: BinaryIO, cut: Cut, closes: bool) -> None:
        self._inner = inner
        self._closes = closes
        self._cut = cut

    @override
    def close(self) -> None:
        if self._closes:
            self._inner.close()
        super().close()

    @override
    def seekable(self) -> bool:
        return self._closes

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._position = self._inner.seek(offset, whence)
        return self._position

    @override
    def _read_on(self, most: int) -> bytes:
        left = self._cut.at - self._position
        if left <= 0:
            raise self._cut.error
        return self._inner.read(min(left, most))


class CutSink:
    """Passes the first `cut.at` bytes to a writer, then raises."""

    def __init__(self, inner: BinaryIO, cut: Cut) -> None:
        self._inner: BinaryIO | None = inner.__enter__()
        self._cut = cut
        self._left = cut.at

    def write(self, data: Buffer, /) -> object:
        view = memoryview(data).cast("B")
        taken = view[: self._left]
        if self._inner is not None:
            self._inner.write(taken)
        self._left -= len(taken)
        if len(taken) < len(view):
            raise self._cut.error
        return len(taken)

    def publish(self) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.__exit__(None, None, None)

    def discard(self) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            error = UnavailableError("the writer was given up")
            inner.__exit__(UnavailableError, error, None)
