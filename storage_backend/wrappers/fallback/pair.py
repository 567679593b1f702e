"""FallbackPair: two backends, the order in which they are tried, and the meaning of their errors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

from storage_backend.base import StorageBackend
from storage_backend.defensive import capabilities_of, location_of
from storage_backend.errors import (
    STORE_MISSING,
    InvalidIdentifierError,
    NotFoundError,
    StorageError,
    is_retryable,
)
from storage_backend.info import Capability

logger = logging.getLogger(__name__)

T = TypeVar("T")
Errors: TypeAlias = list[Exception]
Absences: TypeAlias = list[tuple[StorageBackend, Exception]]

ABSENT = (FileNotFoundError, IsADirectoryError, InvalidIdentifierError)
"""Errors that mean "no such object": also a directory of that name, and a name that the side cannot hold."""


def is_absence(error: BaseException) -> bool:
    """Whether the error says that the side has no such object."""
    return isinstance(error, ABSENT) and not isinstance(error, STORE_MISSING)


class FallbackPair:
    """Two backends, and this instance's knowledge of which side has the valid object.

    Attributes:
        primary, secondary, write_to, on_error: as `FallbackStorage` was given them.
        strayed: identifiers written to the secondary while the primary was unreachable: the secondary's object is valid.
        torn: identifiers of which a write to both sides may have reached only one: what readers see is valid.
        differ: whether the two are proven to be different places.
    """

    def __init__(
        self, primary: StorageBackend, secondary: StorageBackend, write_to: str, on_error: str
    ) -> None:
        self.primary = primary
        self.secondary = secondary
        self.write_to = write_to
        self.on_error = on_error
        self.strayed: set[str] = set()
        self.torn: set[str] = set()
        self.differ = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "strayed": set(self.strayed), "torn": set(self.torn)}

    @property
    def location(self) -> str:
        """The location of the pair."""
        return f"fallback({location_of(self.primary)}|{location_of(self.secondary)})"

    def order(self, identifier: str | None) -> tuple[StorageBackend, StorageBackend]:
        """The sides, in the order in which reads try them."""
        if identifier is None:
            second_first = self.write_to == "secondary"
        else:
            second_first = self.secondary_is_first(identifier)
        return (self.secondary, self.primary) if second_first else (self.primary, self.secondary)

    def secondary_is_first(self, identifier: str) -> bool:
        """Whether a read tries the secondary first."""
        return self.write_to == "secondary" or identifier in self.strayed

    @property
    def target(self) -> StorageBackend:
        """The side that writes go to; with write_to="both", the primary."""
        return self.secondary if self.write_to == "secondary" else self.primary

    @property
    def writes_once(self) -> bool:
        """Whether a write always is a single call to a single side."""
        return self.write_to == "secondary" or (self.write_to == "primary" and self.on_error == "raise")

    @property
    def both(self) -> tuple[StorageBackend, StorageBackend]:
        """The sides, in the order in which write_to="both" writes them."""
        stricter = capabilities_of(self.primary) & ~capabilities_of(self.secondary)
        if Capability.DIRECTORIES in stricter:
            return self.primary, self.secondary
        return self.secondary, self.primary

    def check(self, identifier: str) -> None:
        """Raise before anything is written if either side refuses the name."""
        for side in self.both:
            with suppress(FileNotFoundError):  # a nested pair of which neither side has the object yet
                side.get_path(identifier)

    def forget(self, identifier: str) -> None:
        """Forget an object: the sides agree on it again, or readers see the valid one."""
        self.strayed.discard(identifier)
        self.torn.discard(identifier)

    def valid_side(self, identifier: str) -> str | None:
        """The side with the valid object, as far as this instance knows."""
        if identifier in self.strayed:
            return "secondary"
        if identifier in self.torn:
            return "secondary" if self.write_to == "secondary" else "primary"
        return None

    def should_skip(self, side: StorageBackend, error: BaseException) -> bool:
        """Whether *error* means that *side* is unreachable and must be skipped (failover)."""
        if self.on_error != "fallback" or side is not self.primary:
            return False
        return is_retryable(error) or isinstance(error, ConnectionError | TimeoutError)

    def warn_if_skipped(self, side: StorageBackend, error: Exception) -> bool:
        """As `should_skip`, and log a WARNING if so."""
        if not self.should_skip(side, error):
            return False
        self.warn_skipped([error])
        return True

    def warn_skipped(self, errors: Errors) -> None:
        """Log that the primary is skipped, with the first of *errors*; nothing if there is none."""
        if not errors:
            return
        # Only our own errors promise that their text has no secret in it.
        first = errors[0]
        reason = (
            f"{type(first).__name__}: {first}" if isinstance(first, StorageError) else type(first).__name__
        )
        logger.warning(
            "the primary %s is unreachable, %s is used instead: %s",
            *(location_of(self.primary), location_of(self.secondary), reason),
        )

    def first(self, identifier: str, call: Callable[[StorageBackend], T]) -> T:
        """The result of *call* on the first side that has the object."""
        absences: Absences = []
        down: Exception | None = None
        try:
            for side in self.order(identifier):
                try:
                    return call(side)
                except Exception as error:
                    if is_absence(error):
                        absences.append((side, error))
                    elif self.warn_if_skipped(side, error):
                        down = error
                    else:
                        raise
            raise self.absence(identifier, absences) if down is None else down
        finally:
            del absences, down  # the errors' tracebacks refer to this frame

    def side_with(self, identifier: str, *, past: bool = True) -> StorageBackend | None:
        """The first side that has the object; None if it is in neither.

        Args:
            identifier: the object.
            past: whether an unreachable primary is skipped (with on_error="fallback").
        """
        down: Exception | None = None
        try:
            for side in self.order(identifier):
                try:
                    if side.exists(identifier):
                        return side
                except Exception as error:
                    if not past or not self.warn_if_skipped(side, error):
                        raise
                    down = error
            if down is not None:
                raise down
        finally:
            del down  # its traceback refers to this frame
        return None

    def source_side(self, identifier: str, *, past: bool = True) -> StorageBackend:
        """The side that holds the source of a copy or move; *past* as in `side_with`.

        Raises:
            NotFoundError: "Source file not found".
        """
        side = self.side_with(identifier, past=past)
        if side is not None:
            return side
        with suppress(FileNotFoundError):
            self.first(identifier, lambda side: side.size(identifier))  # raises a more specific error
        raise NotFoundError(
            f"Source file not found: {identifier!r} not found in primary or secondary of {self.location}",
            identifier=identifier,
            backend=self.location,
        )

    def hides(self, side: StorageBackend, dest_id: str) -> bool:
        """Whether an object that *side* gets at *dest_id* would be hidden by the other side's object."""
        front = self.order(dest_id)[0]
        if side is front:
            return False
        try:
            return front.exists(dest_id)
        except Exception as error:
            if not self.warn_if_skipped(front, error):
                raise
            self.strayed.add(dest_id)
            return False

    def absence(self, identifier: str, absences: Absences) -> Exception:
        """The error for an object that neither side has."""
        refusals = [found for found in absences if isinstance(found[1], InvalidIdentifierError)]
        for side, error in refusals:
            # A name that can be written is not refused because the other side cannot hold it.
            if len(refusals) == len(absences) or self.write_to == "both" or side is self.target:
                return error
        for _, error in absences:
            if isinstance(error, IsADirectoryError):
                return error
        return NotFoundError(
            f"{identifier!r} not found in primary or secondary of {self.location}",
            identifier=identifier,
            backend=self.location,
        )

    def of_both(self, identifier: str, first: Exception | None, second: Exception) -> Exception:
        """The error for an object that neither side returned."""
        if not is_absence(second):
            return second
        if first is not None and not is_absence(first):
            return first
        front, back = self.order(None)
        return self.absence(
            identifier, [(back, second)] if first is None else [(front, first), (back, second)]
        )
