"""Formats: an empty file in the directory of a cache says by its name how the rest is laid out, and survives being cut."""

from __future__ import annotations

import os

from storage_backend.errors import ConfigurationError

_MARK = "format."


def check_format(directory: str, known: str) -> None:
    """Refuse a cache that is not of the format *known*. A directory without any is no cache yet.

    Raises:
        ConfigurationError: it is of another.
    """
    for found in formats_in(directory):
        if found != known:
            raise ConfigurationError(
                f"cache_dir: {directory} is a cache of format {found}, and what was asked for knows {known} only; "
                "use another directory, or remove this one",
                parameter="cache_dir",
            )


def mark_format(directory: str, known: str) -> None:
    """Say that the directory is a cache of the format *known*.

    Raises:
        ConfigurationError: it is of another.
    """
    check_format(directory, known)
    os.close(os.open(f"{directory}/{_MARK}{known}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))


def formats_in(directory: str) -> list[str]:
    """The formats that a directory says it has: none, or one.

    Raises:
        OSError: it cannot be listed.
    """
    return [name.removeprefix(_MARK) for name in os.listdir(directory) if name.startswith(_MARK)]
