"""TransferOptions: the settings of a transfer."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

from storage_backend import identifiers
from storage_backend.errors import ConfigurationError
from storage_backend.transfer.progress import Event

Verb: TypeAlias = Literal["sync", "migrate", "verify"]
Verification: TypeAlias = Literal["digest", "size", "none"]


@dataclass(frozen=True)
class TransferOptions:
    """The settings of `sync`, `migrate`, `verify` and `plan`.

    Attributes:
        pattern: only objects that match this glob, on either side.
        include: only objects that match one of these globs; without any, all. If `pattern` is given, it must match too.
        exclude: no object that matches one of these globs. Excluded objects are not deleted either.
        verify: "digest" compares the SHA-256 of what was read with that of what was stored; "size" compares lengths;
            "none" checks nothing. None means the default: "digest" for migrate and verify, "size" for sync.
        checksum: compare the content of all objects of the same size, regardless of their times and the journal; by MD5 if the
            target lists one.
        delete: delete from the target the objects that the source does not have, after everything else succeeded, and once the
            two sides are proven to be different places.
        max_delete: refuse to delete more objects than this. None means the larger of 100 and 10 % of the target.
        trash: a prefix on the target; objects are moved beneath it instead of deleted.
        delete_source: (migrate) delete from the source the objects that are verified on the target, after the same proof.
        flush: (migrate) with `delete_source`, make the target's writes survive power loss first.
        journal: (migrate) path of the journal; None means a file named after the pair of locations, in
            `$XDG_STATE_HOME/storage-backend`.
        manifest: (migrate) path of a file to write: identifier, size and sha256 of every verified object, as JSON lines.
        one_way: (verify) ignore objects that only the target has.
        dry_run: plan only.
        retry_for: seconds for which work is retried, with exponential backoff, while a side is unreachable; the count restarts
            after any success. With 0, a failed object is retried once, at the end.
        workers: batches or large objects in progress at once.
        batch_objects: the most objects in a batch.
        batch_bytes: the most bytes in a batch; an object of more than a quarter of that is streamed by itself.
        on_event: called with each progress.Event, one at a time.
    """

    pattern: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    verify: Verification | None = None
    checksum: bool = False
    delete: bool = False
    max_delete: int | None = None
    trash: str | None = None
    delete_source: bool = False
    flush: bool = True
    journal: str | os.PathLike[str] | None = None
    manifest: str | os.PathLike[str] | None = None
    one_way: bool = False
    dry_run: bool = False
    retry_for: float = 60.0
    workers: int = 4
    batch_objects: int = 256
    batch_bytes: int = 4 << 20
    on_event: Callable[[Event], object] | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "batch_objects", "batch_bytes"):
            if getattr(self, name) < 1:
                raise ConfigurationError(
                    f"{name} must be at least 1, not {getattr(self, name)}", parameter=name
                )
        if not self.retry_for >= 0:
            raise ConfigurationError(
                f"retry_for must not be negative: {self.retry_for}", parameter="retry_for"
            )
        if self.max_delete is not None and self.max_delete < 0:
            raise ConfigurationError(
                f"max_delete must not be negative: {self.max_delete}", parameter="max_delete"
            )
        if self.verify not in {None, "digest", "size", "none"}:
            raise ConfigurationError(
                f'verify must be "digest", "size" or "none", not {self.verify!r}', parameter="verify"
            )
        for name in ("include", "exclude"):
            if isinstance(getattr(self, name), str):
                raise ConfigurationError(
                    f"{name} must be a sequence of patterns, not one str", parameter=name
                )
        for pattern in (*self.include, *self.exclude, *([self.pattern] if self.pattern is not None else [])):
            identifiers.glob(pattern)
        if self.trash is not None:
            identifiers.check(self.trash.removesuffix("/"))

    def verification(self, verb: Verb) -> Verification:
        """`verify`, or the default of *verb*.

        Raises:
            ConfigurationError: `delete_source` without digests.
        """
        found = self.verify or ("size" if verb == "sync" else "digest")
        if self.delete_source and found != "digest":
            raise ConfigurationError('delete_source needs verify="digest"', parameter="verify")
        return found

    def in_scope(self, identifier: str) -> bool:
        """Whether *identifier* is in the scope of the transfer."""
        return self._included(identifier) and not self._excluded(identifier)

    def concerns(self, name: str) -> bool:
        """Whether an entry of a listing is in scope. Its name may be an invalid identifier.

        Patterns ignore empty segments, which they cannot match; a name that ends in "/" counts as an object under it.
        """
        spellings = {name, "/".join(filter(None, name.split("/"))) + ("/\0" if name.endswith("/") else "")}
        return any(map(self._included, spellings)) and not any(map(self._excluded, spellings))

    def _included(self, identifier: str) -> bool:
        if self.pattern is not None and not identifiers.glob(self.pattern).matches(identifier):
            return False
        return not self.include or any(
            identifiers.glob(pattern).matches(identifier) for pattern in self.include
        )

    def _excluded(self, identifier: str) -> bool:
        return any(identifiers.glob(pattern).matches(identifier) for pattern in self.exclude)

    @property
    def everything(self) -> bool:
        """Whether all objects are in scope."""
        return self.pattern is None and not self.include and not self.exclude

    @property
    def stem(self) -> str:
        """The literal prefix of all objects in scope."""
        return identifiers.glob(self.pattern).stem if self.pattern is not None else ""


def options_from(options: TransferOptions | None, keywords: dict[str, Any]) -> TransferOptions:
    """The options given as one object or as keywords.

    Raises:
        ConfigurationError: both were given, or a keyword is unknown.
    """
    if options is not None and keywords:
        raise ConfigurationError("give either TransferOptions or its fields as keywords", parameter="options")
    known = [field.name for field in fields(TransferOptions)]
    for name in keywords:
        if name not in known:
            raise ConfigurationError(f"unknown option {name!r}; known: {', '.join(known)}", parameter=name)
    for name in ("include", "exclude"):
        if isinstance(keywords.get(name), list):
            keywords = {**keywords, name: tuple(keywords[name])}
    return options if options is not None else TransferOptions(**keywords)
