"""CacheWarnings: what is logged of a cache that does not work."""

from __future__ import annotations

import logging
from pathlib import Path

logger = logging.getLogger(__name__)


class CacheWarnings:
    """Logs that a cache does not work, loudly once. It refers to nothing that refers to it: an engine keeps it.

    Args:
        directory: of the cache.
        location: of the backend, without secrets.
    """

    def __init__(self, directory: Path, location: str) -> None:
        self._directory = directory
        self._location = location
        self._warned = False

    def log(self, error: Exception) -> None:
        """Log it."""
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        logger.log(
            level,
            "the cache in %s does not work (%s: %s); %s is read and written without it where needed",
            self._directory,
            type(error).__name__,
            error,
            self._location,
        )
