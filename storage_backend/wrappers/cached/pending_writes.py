"""Changes: what is being changed in the backend, as all users of a cache directory see it.

Each change under way is a file in the folder `changing`. Its name is made of the token of whoever makes it (16 digits, see
`users`), a number (16 digits) and, of one object, its key's name (32 digits); of several objects their names are in
the file. It is there before the backend is called and outlives a kill: whoever finds that its maker is gone raises the generations
of its keys, and removes it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from storage_backend.wrappers.cached.blob_files import remove
from storage_backend.wrappers.cached.engine import is_name

_TOKEN = 16
_MARK = 32
_NAME = 32
_FEW = 8  # names that are looked for one by one


def begin(folder: str, staging: str, token: str, names: Sequence[str]) -> str:
    """Tell that objects are being changed; the name of the file that does.

    Args:
        folder: of the changes.
        staging: a folder beside it.
        token: whose change it is.
        names: of the objects' keys.
    """
    mark = token + os.urandom((_MARK - _TOKEN) // 2).hex()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    if len(names) == 1:
        mark += names[0]
        os.close(os.open(f"{folder}/{mark}", flags, 0o666))
        return mark
    path = f"{staging}/{token}-{mark}"
    Path(path).write_text("".join(names), encoding="ascii")
    os.rename(path, f"{folder}/{mark}")
    return mark


def end(folder: str, mark: str) -> None:
    """Tell that a change is over."""
    with suppress(OSError):
        remove(f"{folder}/{mark}")


def under_way(folder: str) -> list[str]:
    """The marks of all changes under way."""
    try:
        return [mark for mark in os.listdir(folder) if len(mark) in {_MARK, _MARK + _NAME}]
    except FileNotFoundError:
        return []


def owner(mark: str) -> str:
    """The token of whoever makes a change."""
    return mark[:_TOKEN]


def names(folder: str, mark: str) -> list[str]:
    """The names of the keys whose objects a change is of; none if it is over."""
    text = _text(folder, mark)
    found = [text[at : at + _NAME] for at in range(0, len(text), _NAME)]
    return [name for name in found if is_name(name)]  # they become paths


def of(folder: str, wanted: Collection[str], but: str = "") -> Iterator[tuple[str, set[str]]]:
    """The changes under way of some objects: the mark of each, and those of their keys' names that it is of.

    Args:
        folder: of the changes.
        wanted: names of keys.
        but: the mark of a change that is left out.
    """
    for mark in under_way(folder):
        if mark == but:
            continue
        text = _text(folder, mark)
        if len(wanted) <= _FEW:
            found = {name for name in wanted if name in text}
        else:
            found = {text[at : at + _NAME] for at in range(0, len(text), _NAME)}.intersection(wanted)
        if found:
            yield mark, found


def _text(folder: str, mark: str) -> str:
    """The names that a change is of, one after the other."""
    if len(mark) > _MARK:
        return mark[_MARK:]
    try:
        return Path(f"{folder}/{mark}").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
