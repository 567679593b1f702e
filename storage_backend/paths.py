"""Local paths: expansion of "~", and the user's directories for state and caches."""

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
    """*path* with a leading "~" or "~user" replaced by the home directory, as in a shell; None stays None.

    All local paths given by users are expanded here, so that all behave alike. The name of an unknown user is not
    replaced; "./~" always is the name of a file.
    """
    return None if path is None else os.path.expanduser(os.fspath(path))  # noqa: PTH111 - stays text; Path's raises


def state_directory() -> Path:
    """The user's directory for state: $XDG_STATE_HOME/storage-backend, by default under ~/.local/state. It may not exist yet.

    Raises:
        ConfigurationError: this user has no home.
    """
    return _user_directory("XDG_STATE_HOME", ".local/state", "state")


def cache_directory() -> Path:
    """The user's directory for caches: $XDG_CACHE_HOME/storage-backend, by default under ~/.cache. It may not exist yet.

    Raises:
        ConfigurationError: this user has no home.
    """
    return _user_directory("XDG_CACHE_HOME", ".cache", "a cache")


def _user_directory(variable: str, default: str, purpose: str) -> Path:
    # XDG Base Directory Specification
    given = os.environ.get(variable)
    try:
        return (Path(given) if given else Path.home() / default) / "storage-backend"
    except RuntimeError as error:
        raise ConfigurationError(f"no directory for {purpose}: {error}; set {variable}") from None
