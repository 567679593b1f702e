"""Checks the base directory of a LocalStorage and creates it, now or at the first write."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from storage_backend.backends.local.errors import ErrorTranslation
from storage_backend.backends.local.syncing import sync_path
from storage_backend.errors import (
    BaseDirectoryNotFoundError,
    ConfigurationError,
    UnsupportedOperationError,
)
from storage_backend.paths import expanded


def refuse_platform(platform: str) -> None:
    """Raise an UnsupportedOperationError on Windows, which lacks the system calls that containment needs."""
    if platform == "win32":
        raise UnsupportedOperationError(
            "LocalStorage works on Linux and macOS; on Windows use another backend, or WSL"
        )


def prepare_base(
    base_dir: str | os.PathLike[str], *, create: bool | Literal["late"], durable: bool
) -> tuple[Path, Callable[[], object] | None]:
    """Resolve the base directory, and create it if *create* is True.

    Returns:
        Its absolute path; and, with "late" and a missing directory, a function that creates it, else None.

    Raises:
        BaseDirectoryNotFoundError: it does not exist, or cannot be created.
        ConfigurationError: it is not a directory.
        AccessDeniedError: its parent is not writable.
    """
    given = expanded(base_dir)
    if given.startswith("~"):
        raise ConfigurationError(
            f'base_dir {given!r}: there is no such user; write "./{given}" for a directory of that name',
            parameter="base_dir",
        )
    try:
        base = Path(given).resolve()
    except RuntimeError as error:  # a loop of symlinks
        raise ConfigurationError(
            f"base_dir {os.fspath(base_dir)!r}: {error}", parameter="base_dir"
        ) from error
    with ErrorTranslation(None, base.as_uri()):
        if create == "late" and not base.exists():
            _check_creatable(base)
            return base, partial(_create, base, durable)
        if create:
            _create(base, durable)
        if not base.exists():
            raise BaseDirectoryNotFoundError(f"base directory {str(base)!r} does not exist")
    if not base.is_dir():
        raise ConfigurationError(f"base directory {str(base)!r} is not a directory", parameter="base_dir")
    return base, None


def _create(base: Path, durable: bool) -> None:
    missing = [path for path in (base, *base.parents) if not path.exists()]
    try:
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            if durable:
                sync_path(path.parent)
    except (FileExistsError, NotADirectoryError) as error:
        raise _blocked(base, error.filename) from error
    except FileNotFoundError as error:  # as in /proc
        raise BaseDirectoryNotFoundError(f"base directory {str(base)!r} cannot be created") from error


def _check_creatable(base: Path) -> None:
    """Raise the error that creating the directory would raise."""
    above = next(path for path in base.parents if path.exists())
    if not above.is_dir():
        raise _blocked(base, str(above))
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(above))


def _blocked(base: Path, other: str) -> ConfigurationError:
    return ConfigurationError(
        f"base directory {str(base)!r} cannot be created: {other!r} is not a directory", parameter="base_dir"
    )
