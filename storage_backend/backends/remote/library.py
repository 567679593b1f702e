"""ssh_library imports paramiko on first use; limited is a timeout for its calls that have none."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from storage_backend.errors import MissingClientError
from storage_backend.forks import no_fork


def ssh_library() -> Any:
    """The module paramiko. Look up its classes on each use: a test may have replaced them.

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


@contextmanager
def limited(seconds: float, close: Callable[[], object]) -> Iterator[threading.Timer]:
    """Call *close* if the body takes longer than *seconds*: paramiko waits for some replies without a timeout."""
    timer = threading.Timer(seconds, close)
    timer.daemon = True
    timer.start()
    try:
        yield timer
    finally:
        timer.cancel()
