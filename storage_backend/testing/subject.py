"""Subject: the backend under test; Topic: the base of all topics; and helpers of the topics."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, BinaryIO, Literal, cast

import pytest

from storage_backend.base import StorageBackend
from storage_backend.defensive import capabilities_of
from storage_backend.info import Capability, ObjectInfo

FEATURES: Mapping[str, str] = MappingProxyType(
    {
        "atomic": "an object becomes visible when it is whole, and a failed write leaves the old one",
        "beneath": "a flat store holds both `a` and `a/b`; deleting either leaves the other",
        "conditions": "create() keeps an existing object, replace() a changed one",
        "content": "write() accepts readers and all buffers, and refuses text before anything is touched",
        "content_type": "the media type given to write_stream() is kept",
        "errors": "errors are this package's, name the identifier and the location, and pickle",
        "exact names": "two spellings are two objects, however alike; no case folding, no normalisation",
        "fork": "a forked child can use the inherited instance",
        "globs": "list(pattern) follows the glob dialect of `identifiers`",
        "long names": "a segment of more than 255 bytes is stored, or the identifier refused",
        "missing delete": "delete() of a missing object raises",
        "modified": "the time given to write_stream() and write_many() is kept, and returned by stat() and scan()",
        "newlines": "identifiers may contain line feeds",
        "one deleter": "of simultaneous delete() calls for one object, one returns True",
        "one winner": "of simultaneous create() or replace() calls for one object, one wins",
        "order": "list() is sorted, and names each object once",
        "pickle": "an instance pickles",
        "processes": "other processes see the same objects, and a spawned child can access them",
        "refusals": "identifiers that break the rules are refused",
        "shared": "all instances that make() returns hold the same objects",
        "threads": "one instance may be used from many threads",
        "urls": "a URL from get_url() can be fetched from here",
        "whole reads": "during a write of the same object, a reader sees the old one or the new one",
    }
)
"""Feature -> what a store that lacks it cannot do. All else is required of every backend."""


@dataclass(frozen=True)
class Subject:
    """A backend under test.

    Attributes:
        make: returns an instance on the same store, which is empty at first. If the store exists only in one instance, return that
            one each time, and declare that it lacks "shared".
        lacks: feature -> the reason why this store cannot have it; `FEATURES` lists them. Exactly the tests of these features are
            skipped, with the reason.
        instance: one instance for all tests of a class, where connecting takes longer than a test. The fixture empties its store
            before each test and closes it after the last. None: each test gets an instance from *make*.
    """

    make: Callable[[], StorageBackend]
    lacks: Mapping[str, str] = field(default_factory=dict)
    instance: StorageBackend | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.lacks) - set(FEATURES))
        if unknown:
            raise ValueError(f"unknown features in lacks: {unknown}; known: {sorted(FEATURES)}")
        unexplained = sorted(feature for feature, reason in self.lacks.items() if not str(reason).strip())
        if unexplained:
            raise ValueError(f"no reason is given for lacking {unexplained}")

    def has(self, feature: str) -> bool:
        """Whether the store has *feature*."""
        if feature not in FEATURES:
            raise ValueError(f"unknown feature {feature!r}")
        return feature not in self.lacks

    def require(self, feature: str) -> None:
        """Skip the running test, with the reason, if the store lacks *feature*."""
        if not self.has(feature):
            pytest.skip(f"lacks {feature!r}: {self.lacks[feature]}")


class Topic:
    """The base of the topics: the fixtures."""

    @pytest.fixture
    def subject(self) -> Subject:
        """The backend under test; each test class defines its own."""
        pytest.fail(f"{type(self).__name__} must define a fixture `subject` that returns a Subject")

    @pytest.fixture
    def backend(self, subject: Subject) -> Iterator[StorageBackend]:
        """An instance of the subject, over an empty store."""
        if subject.instance is not None:
            yield subject.instance
            return
        with subject.make() as backend:
            yield backend


ALL_BYTES = bytes(range(256)) + b"\r\n\n\r\x1a\xff\xfe\x00" + bytes(range(255, -1, -1))
"""Every byte value, and the sequences that text modes change."""

SIZES = (0, 1, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, (8 << 20) - 1, 8 << 20, (8 << 20) + 1)
"""Zero, and both sides of the sizes at which implementations change their method."""


@lru_cache(maxsize=16)
def content_of(size: int, seed: int = 0) -> bytes:
    """*size* pseudo-random bytes, the same on each call."""
    return random.Random(f"{size}/{seed}").randbytes(size)  # noqa: S311 - not for secrecy


def has_directories(backend: StorageBackend) -> bool:
    """Whether `a` and `a/b` exclude each other."""
    return Capability.DIRECTORIES in capabilities_of(backend)


def fill(backend: StorageBackend, *identifiers: str) -> None:
    """Store under each identifier an object whose content is its name."""
    for identifier in identifiers:
        assert backend.write(identifier, named(identifier)) is True


def named(identifier: str) -> bytes:
    """The content that `fill` stores."""
    return b"content of " + identifier.encode("utf-8", "surrogateescape")


def write_any(backend: StorageBackend, identifier: str, content: object) -> object:
    """Call `write` with content of a type that the abstract signature does not have."""
    return cast(Any, backend).write(identifier, content)


def everything(backend: StorageBackend) -> dict[str, bytes]:
    """All objects, with their content."""
    return {info.identifier: backend.read(info.identifier) for info in backend.scan()}


def names(found: Iterator[ObjectInfo]) -> list[str]:
    """The identifiers of a scan, in its order."""
    return [info.identifier for info in found]


class Difference:
    """The result of `same` for different contents: false, with a short description."""

    def __init__(self, account: str) -> None:
        self._account = account

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return self._account


def same(found: object, expected: object) -> Literal[True] | Difference:
    """Whether two contents, or dictionaries of them, are equal; for large ones.

    `assert found == expected` would have pytest compare them line by line in CI, where it shows all of a difference:
    for a few megabytes that takes hours.
    """
    if found == expected:
        return True
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = sorted({*found, *expected})
        wrong = [
            key for key in keys if key not in found or key not in expected or found[key] != expected[key]
        ]
        key = wrong[0]
        if key not in found or key not in expected:
            return Difference(
                f"{len(wrong)} differ; {key!r} is {'missing' if key in expected else 'too many'}"
            )
        return Difference(f"{len(wrong)} differ; {key!r}: {same(found[key], expected[key])!r}")
    if isinstance(found, bytes) and isinstance(expected, bytes):
        shorter = min(len(found), len(expected))
        # Bisection: a loop over megabytes would be slow, too.
        low, high = 0, shorter
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if found[:middle] == expected[:middle] else (low, middle - 1)
        account = f"{found[low : low + 20]!r} instead of {expected[low : low + 20]!r}"
        return Difference(f"{len(found):,} bytes for {len(expected):,}; from byte {low:,} on {account}")
    return Difference(f"{found!r:.200} instead of {expected!r:.200}")


class SourceBrokeError(Exception):
    """The error of a `Source`: of no class that a backend could take for an error of its own."""


class Source:
    """A reader with no method but `read`, for sources that return short reads or fail.

    Args:
        content: the bytes to return.
        most: the maximum of bytes for each read.
        breaks_at: raise SourceBrokeError after this many bytes.
        watch: called before each read.
    """

    def __init__(
        self,
        content: bytes,
        *,
        most: int | None = None,
        breaks_at: int | None = None,
        watch: Callable[[], object] | None = None,
    ) -> None:
        self._content = content
        self._most = most
        self._breaks_at = breaks_at
        self._watch = watch
        self.position = 0

    def read(self, size: int = -1, /) -> bytes:
        """Read the next bytes."""
        if self._watch is not None:
            self._watch()
        end = len(self._content) if size is None or size < 0 else self.position + size
        if self._most is not None:
            end = min(end, self.position + self._most)
        if self._breaks_at is not None:
            if self.position >= self._breaks_at:
                raise SourceBrokeError
            end = min(end, self._breaks_at)
        chunk = self._content[self.position : end]
        self.position += len(chunk)
        return chunk

    def as_binary(self) -> BinaryIO:
        """This object as a `BinaryIO`, for type checkers: backends only call `read`."""
        return cast(BinaryIO, self)
