"""Copies between the two sides of a pair: verified, and nothing is deleted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from storage_backend.base import StorageBackend
from storage_backend.defensive import info_of, location_of
from storage_backend.errors import STORE_MISSING, Failures, NotFoundError, SourceChangedError
from storage_backend.info import ObjectInfo
from storage_backend.markers import refuse_one_object
from storage_backend.streams import HashingReader
from storage_backend.wrappers.fallback.merged_scans import paired
from storage_backend.wrappers.fallback.pair import FallbackPair
from storage_backend.wrappers.fallback.writing import done
from storage_backend.wrappers.sources import info_for_copy


@dataclass(frozen=True, slots=True)
class RepairReport:
    """The result of `FallbackStorage.repair`.

    Attributes:
        same: the number of objects that were equal on both sides.
        to_primary: identifiers copied to the primary.
        to_secondary: identifiers copied to the secondary.
        undecided: identifiers whose objects differ, and nothing proves which is valid; both were kept.
        failures: identifier -> why it could not be compared or copied.
    """

    same: int = 0
    to_primary: tuple[str, ...] = ()
    to_secondary: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
    failures: Mapping[str, Exception] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether both sides hold the same now."""
        return not self.undecided and not self.failures


def repair_pair(pair: FallbackPair, winner: str | None) -> RepairReport:
    """See `FallbackStorage.repair`."""
    failures = Failures()
    sides = {"primary": pair.primary, "secondary": pair.secondary}
    copies: dict[str, list[str]] = {"primary": [], "secondary": []}
    undecided: list[str] = []
    same = 0
    for name, here, there in paired(pair.primary.scan(), pair.secondary.scan()):
        with failures.of(name):
            if here is None or there is None:
                source = "secondary" if here is None else "primary"
            elif not _differ(pair.primary, pair.secondary, here, there):
                same += 1
                pair.forget(name)
                continue
            else:
                source = pair.valid_side(name) or winner or ""
                if not source:
                    undecided.append(name)
                    continue
            target = "primary" if source == "secondary" else "secondary"
            copied(sides[source], sides[target], name)
            copies[target].append(name)
            pair.forget(name)
    return RepairReport(
        same, tuple(copies["primary"]), tuple(copies["secondary"]), tuple(undecided), failures.errors
    )


def migrate(pair: FallbackPair, identifier: str, *, to: str, delete: bool) -> bool:
    """Copy an object to the side *to* and, with *delete*, delete it from the other; see `FallbackStorage`."""
    sides = ("secondary", pair.secondary), ("primary", pair.primary)
    (name, source), (_, target) = sides if to == "primary" else reversed(sides)
    try:
        copied(source, target, identifier)
    except FileNotFoundError as error:
        if isinstance(error, STORE_MISSING) or source.exists(identifier):
            raise
        raise NotFoundError(
            f"{identifier!r} not found in {name} {location_of(source)}",
            identifier=identifier,
            backend=pair.location,
        ) from error
    if delete:
        if not pair.differ:
            refuse_one_object(source, identifier, target, identifier)
            pair.differ = True
        source.delete(identifier)
    return True


def copied(source: StorageBackend, target: StorageBackend, identifier: str) -> None:
    """Copy an object from one backend to another, replacing any object there, and verify the copy.

    Raises:
        FileNotFoundError: the source has none.
        IntegrityError: the stored bytes differ from those read.
        SourceChangedError: the source's object changed meanwhile.
    """
    before = info_of(source.stat(identifier), identifier)
    with source.open(identifier) as reader:
        hashing = HashingReader(reader)
        stored = target.write_stream(
            identifier,
            cast(BinaryIO, hashing),
            info=info_for_copy(before, identifier, before.size),
            verify=True,
        )
    done(stored, target, identifier)
    if not _is_still(source, before, hashing.hexdigest()):
        where = location_of(source)
        raise SourceChangedError(
            f"{identifier!r} in {where} changed while it was copied; nothing was deleted",
            identifier=identifier,
            backend=where,
        )


def _is_still(source: StorageBackend, before: ObjectInfo, digest: str) -> bool:
    """Whether the source object is unchanged since it was read."""
    after = info_of(source.stat(before.identifier), before.identifier)
    if before.etag is not None and after.etag is not None:
        return before.etag == after.etag
    if (before.size, before.modified) != (after.size, after.modified):
        return False
    # A later write may leave the same size and time.
    return source.checksum(before.identifier) == digest


def _differ(one: StorageBackend, other: StorageBackend, here: ObjectInfo, there: ObjectInfo) -> bool:
    """Whether two backends have different bytes for one object."""
    name = here.identifier
    sizes = [info.size for info in (info_of(here, name), info_of(there, name))]
    if None not in sizes and sizes[0] != sizes[1]:
        return True
    return one.checksum(name) != other.checksum(name)
