"""`read_range`."""

from __future__ import annotations

import pytest

from storage_backend.base import StorageBackend
from storage_backend.testing.subject import Topic, content_of, fill, same

SIZE = 100_000
BOUNDS = (0, 1, 2, 4095, 4096, 4097, SIZE // 2, SIZE - 1, SIZE, SIZE + 1, SIZE * 2)


class Ranges(Topic):
    """`read_range`: half-open, clamped, never negative."""

    def test_range_is_what_a_slice_is(self, backend: StorageBackend) -> None:
        content = content_of(SIZE)
        backend.write("a", content)
        wrong = [
            (start, end)
            for start in BOUNDS
            for end in (*BOUNDS, None)
            if backend.read_range("a", start, end) != content[start:end]
        ]
        assert wrong == []

    def test_end_is_optional(self, backend: StorageBackend) -> None:
        backend.write("a", b"0123456789")
        assert backend.read_range("a", 3) == b"3456789"
        assert backend.read_range("a", 0) == b"0123456789"
        assert backend.read_range("a", 10) == b""
        assert backend.read_range("a", 3, end=5) == b"34"

    def test_empty_object_has_empty_ranges(self, backend: StorageBackend) -> None:
        backend.write("a", b"")
        assert [backend.read_range("a", *bounds) for bounds in ((0,), (0, 0), (0, 5), (5,), (5, 9))] == [
            b""
        ] * 5

    def test_huge_bounds_are_clamped(self, backend: StorageBackend) -> None:
        backend.write("a", b"0123456789")
        assert backend.read_range("a", 8, 1 << 62) == b"89"
        assert backend.read_range("a", 1 << 62) == b""
        assert backend.read_range("a", 1 << 61, 1 << 62) == b""

    def test_negative_bounds_are_refused(self, backend: StorageBackend) -> None:
        fill(backend, "a")
        for bounds in ((-1,), (-1, 5), (0, -1), (5, -2), (-5, -2)):
            with pytest.raises(ValueError):
                backend.read_range("a", *bounds)

    def test_missing_object_has_no_ranges(self, backend: StorageBackend) -> None:
        for bounds in ((0, 5), (0,), (5, 5), (0, 0), (1 << 62,)):
            with pytest.raises(FileNotFoundError):
                backend.read_range("absent", *bounds)

    def test_range_follows_a_change(self, backend: StorageBackend) -> None:
        backend.write("a", b"a" * 10_000)
        assert backend.read_range("a", 5, 8) == b"aaa"
        backend.write("a", b"b" * 20_000)
        assert backend.read_range("a", 5, 8) == b"bbb"
        assert backend.read_range("a", 15_000, 15_003) == b"bbb"
        backend.write("a", b"c" * 6)
        assert backend.read_range("a", 5, 8) == b"c"
        backend.delete("a")
        with pytest.raises(FileNotFoundError):
            backend.read_range("a", 5, 8)

    def test_ranges_of_a_large_object(self, backend: StorageBackend) -> None:
        size = (8 << 20) + 1
        content = content_of(size)
        backend.write("a", content)
        for start in (0, (1 << 20) - 1, 5 << 20, size - 70_000, size - 1):
            for length in (1, 65_537, 1 << 20):
                assert same(backend.read_range("a", start, start + length), content[start : start + length])
