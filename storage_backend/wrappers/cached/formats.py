"""Formats: the name of an empty file in a cache directory identifies its layout. Truncating that file does no harm."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from storage_backend.errors import ConfigurationError

_MARK = "format."


def prepare(directory: str, known: str, warn: Callable[[Exception], object]) -> None:
    """Check the directory of a cache before the first use creates it.

    Args:
        directory: of the cache.
        known: the required format.
        warn: called with the error if the directory cannot be used now.

    Raises:
        ConfigurationError: it is not a directory, or has another format.
    """
    try:
        above = next(
            path
            for path in (Path(directory).absolute(), *Path(directory).absolute().parents)
            if _is_there(path)
        )
        if above == Path(directory).absolute():
            check_format(directory, known)
        elif not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(above))
        elif not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(above))
    except NotADirectoryError as error:
        raise ConfigurationError(
            f"cache_dir: {directory} is not a directory ({error})", parameter="cache_dir"
        ) from error
    except ConfigurationError:
        raise
    except OSError as error:
        warn(error)


def _is_there(path: Path) -> bool:
    """Whether the path exists, if only as a dangling link."""
    return path.exists() or path.is_symlink()


def check_format(directory: str, known: str) -> None:
    """Refuse a cache of another format than *known*. A directory without a format is not a cache yet.

    Raises:
        ConfigurationError: it is of another.
    """
    for found in formats_in(directory):
        if found != known:
            raise ConfigurationError(
                f"cache_dir: {directory} is a cache of format {found}, but the requested engine supports only {known}; "
                "use another directory, or remove this one",
                parameter="cache_dir",
            )


def mark_format(directory: str, known: str) -> None:
    """Mark the directory as a cache of the format *known*.

    Raises:
        ConfigurationError: it is of another.
    """
    check_format(directory, known)
    with suppress(FileExistsError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        os.close(os.open(f"{directory}/{_MARK}{known}", flags, 0o666))


def formats_in(directory: str) -> list[str]:
    """The formats that a directory is marked with: none, or one.

    Raises:
        OSError: it cannot be listed.
    """
    return [name.removeprefix(_MARK) for name in os.listdir(directory) if name.startswith(_MARK)]
