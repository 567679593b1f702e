"""Paths of this machine: "~" expanded, and the user's directories for state and caches."""

from __future__ import annotations

import os
from pathlib import Path
from typing import overload

from storage_backend.errors import ConfigurationError


@overload
def expanded(path: str | os.PathLike[str]) -> str: ...
@overload
def expanded(path: str | os.PathLike[str] | None) -> str | None: ...
def expanded(path: str | os.PathLike[str] | None) -> str | None:
    """*path* with a "~" or "~user" that it begins with replaced by that home directory, as a shell does; None stays None.

    Every path of this machine that a user gives comes through here, so that each means what the others do. Where there
    is no such user, the name is taken as it is; "./~" is always the name of a file.
    """
    return None if path is None else os.path.expanduser(os.fspath(path))  # noqa: PTH111 - stays text; Path's raises


def state_directory() -> Path:
    """The user's directory for state: $XDG_STATE_HOME/storage-backend. It may not exist yet.

    Without that variable it is below ~/.local/state (XDG Base Directory Specification).

    Raises:
        ConfigurationError: this user has no home.
    """
    given = os.environ.get("XDG_STATE_HOME")
    try:
        return (Path(given) if given else Path.home() / ".local" / "state") / "storage-backend"
    except RuntimeError as error:
        raise ConfigurationError(f"nowhere to keep state: {error}; set XDG_STATE_HOME") from None


def cache_directory() -> Path:
    """The user's directory for caches: $XDG_CACHE_HOME/storage-backend. It may not exist yet.

    Without that variable it is below ~/.cache (XDG Base Directory Specification).

    Raises:
        ConfigurationError: this user has no home.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(given) if given else Path.home() / ".cache") / "storage-backend"
    except RuntimeError as error:
        raise ConfigurationError(f"nowhere to keep a cache: {error}; set XDG_CACHE_HOME") from None
