"""Packed: many small files from a server, as one tar stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from typing import Self

from storage_backend.backends.remote.commands import KEPT, Command, CommandError
from storage_backend.backends.remote.tarstream import TooLargeError, members
from storage_backend.errors import IntegrityError

_GROUP = 500  # names to a send
_ABSENT = b": Cannot stat: No such file or directory"
_SUMMARY = b"tar: Exiting with failure status due to previous errors"


class Packed:
    """An iterator of (name, content), in the order of the names asked for; what is no regular file is left out.

    Raises, from its steps:
        IntegrityError: the server sent what was not asked for, or nonsense.

    Attributes:
        complete: after the end, whether all that was given is what the files held. If not (one changed or shrank while it was
            read, could not be read or was longer than the limit), none of it may be believed.
    """

    def __init__(
        self,
        start: Callable[[Iterable[bytes]], Command],
        names: Iterable[bytes],
        limit: int,
        errors: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.complete = False
        self._asked: deque[bytes] = deque()
        self._members = self._run(start, iter(names), limit, errors)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[bytes, bytes]:
        return next(self._members)

    def close(self) -> None:
        """End the command, if it runs."""
        self._members.close()

    def _run(
        self,
        start: Callable[[Iterable[bytes]], Command],
        names: Iterator[bytes],
        limit: int,
        errors: Callable[[], AbstractContextManager[None]],
    ) -> Generator[tuple[bytes, bytes]]:
        with errors(), start(self._sent(names)) as command:
            try:
                yield from members(command.read, self._claimable(), limit)
            except TooLargeError:
                return
            except EOFError:
                # Either tar failed, or the connection was lost: the status tells which.
                self._settle(command, whole=False)
            else:
                self._settle(command, whole=True)

    def _settle(self, command: Command, *, whole: bool) -> None:
        try:
            command.finish()
        except CommandError as error:
            # Above 100 are the script's own, of the directory.
            if error.status > 100 or error.status < 0:
                raise
            self.complete = whole and error.status == 2 and _only_absent(command)
            return
        if not whole:
            raise IntegrityError("the server's tar ends early, and says that it is whole")
        self.complete = True

    def _sent(self, names: Iterator[bytes]) -> Iterator[bytes]:
        while group := [b"./" + name for name in islice(names, _GROUP)]:
            self._asked += group
            yield b"\0".join(group) + b"\0"

    def _claimable(self) -> Iterator[bytes]:
        while self._asked:
            yield self._asked.popleft()


def _only_absent(command: Command) -> bool:
    """Whether tar complains of nothing but names that are not there. It quotes them, so none holds a line's end."""
    if command.stderr_size > KEPT:
        return False
    lines = command.stderr.splitlines()
    return all(line.endswith(_ABSENT) or line == _SUMMARY for line in lines)
