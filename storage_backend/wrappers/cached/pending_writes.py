"""PendingWrites: shows all users of a cache directory which objects are being written in the backend.

Each write in progress is a file in the folder `changing`. Its name, the mark, is the token of the writing user (16 digits, see
`users`), a random number (16 digits) and, for one object, its key's name (32 digits); for several objects the file holds
their names. It exists before the backend is called and survives a kill: whoever finds that its user is dead raises the
generations of its keys, and removes it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from storage_backend.wrappers.cached.entry import is_name
from storage_backend.wrappers.cached.index import IndexTransaction
from storage_backend.wrappers.cached.layout import BlobLayout, remove
from storage_backend.wrappers.cached.users import is_alive

_TOKEN = 16
_MARK = 32
_NAME = 32
_FEW = 8  # names that are searched one by one


class PendingWrites:
    """The marks of one cache directory.

    Attributes:
        unended: marks of this process whose write is over, but whose mark could not be removed.
    """

    def __init__(self, layout: BlobLayout) -> None:
        self.unended: set[str] = set()
        self._layout = layout

    def begin(self, token: str, names: Sequence[str]) -> str:
        """Mark objects as being written by the user *token*.

        Args:
            token: of the user.
            names: of the objects' keys.

        Returns:
            The mark.
        """
        folder = self._layout.changing
        mark = token + os.urandom((_MARK - _TOKEN) // 2).hex()
        if len(names) == 1:
            mark += names[0]
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            try:
                fd = os.open(f"{folder}/{mark}", flags, 0o666)
            except FileNotFoundError:
                Path(folder).mkdir(exist_ok=True)
                fd = os.open(f"{folder}/{mark}", flags, 0o666)
            os.close(fd)
            return mark
        Path(folder).mkdir(exist_ok=True)
        path = f"{self._layout.staging}/{token}-{mark}"
        Path(path).write_text("".join(names), encoding="ascii")
        os.rename(path, f"{folder}/{mark}")
        return mark

    def end(self, mark: str) -> None:
        """Remove a mark, after the commit of the transaction that has raised the generations."""
        path = f"{self._layout.changing}/{mark}"
        try:
            os.unlink(path)
        except OSError:
            with suppress(OSError):
                remove(path)  # a directory is in its place
        self.unended.discard(mark)

    def of(self, transaction: IndexTransaction, wanted: Collection[str], but: str = "") -> set[str]:
        """The keys, out of *wanted*, whose objects are being written; the writes of dead users are ended.

        Args:
            transaction: raises the generations of the keys of dead users' writes.
            wanted: names of keys.
            but: a mark to ignore.
        """
        pending: set[str] = set()
        for mark in under_way(self._layout.changing):
            if mark == but:
                continue
            text = self._names_text(mark)
            if len(wanted) <= _FEW:
                found = {name for name in wanted if name in text}
            else:
                found = {text[at : at + _NAME] for at in range(0, len(text), _NAME)}.intersection(wanted)
            if found and not self._end_if_dead(transaction, mark):
                pending |= found
        return pending

    def any_of(self, name: str) -> bool:
        """Whether any user has marked the key."""
        return any(name in self._names_text(mark) for mark in under_way(self._layout.changing))

    def end_dead(self, transaction: IndexTransaction) -> None:
        """End all writes of dead users."""
        for mark in under_way(self._layout.changing):
            self._end_if_dead(transaction, mark)

    def _end_if_dead(self, transaction: IndexTransaction, mark: str) -> bool:
        """End a write whose user is dead or could not end it: the object's content is unknown. Return whether it was one."""
        token = mark[:_TOKEN]
        alive = token == transaction.token or is_alive(self._layout.members, token)
        if alive and mark not in self.unended:
            return False
        text = self._names_text(mark)
        found = [text[at : at + _NAME] for at in range(0, len(text), _NAME)]
        names = [name for name in found if is_name(name)]  # they become paths
        transaction.intend(names)
        for name in names:
            self._layout.unlink(name)
            transaction.raise_generation(name)
        transaction.after_commit.append(partial(self.end, mark))
        return True

    def _names_text(self, mark: str) -> str:
        """The concatenated names of a mark; "" if the write is over."""
        if len(mark) > _MARK:
            return mark[_MARK:]
        try:
            return Path(f"{self._layout.changing}/{mark}").read_text(encoding="ascii", errors="replace")
        except OSError:
            return ""


def under_way(folder: str) -> list[str]:
    """The marks of all writes in progress."""
    try:
        return [mark for mark in os.listdir(folder) if len(mark) in {_MARK, _MARK + _NAME}]
    except FileNotFoundError:
        return []
