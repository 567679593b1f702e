"""ssh_library: paramiko, imported when first needed."""

from __future__ import annotations

import functools
from typing import Any

from storage_backend.errors import MissingClientError
from storage_backend.forks import no_fork


def ssh_library() -> Any:
    """The module paramiko, whose classes are looked up on it at each use, so that a substitute there is used.

    Raises:
        MissingClientError: it is not installed.
    """
    try:
        _load()
        import paramiko
    except ImportError as error:
        raise MissingClientError(f"RemoteStorage needs paramiko ({error}): pip install paramiko") from error
    return paramiko


@functools.cache
def _load() -> None:
    with no_fork():
        import paramiko  # noqa: F401
