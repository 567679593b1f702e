"""Flow: how far the objects under way have come, and which side is waited for."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from storage_backend.base import StorageBackend
from storage_backend.defensive import location_of


class Flow:
    """Bytes of objects that are not settled yet. Used from many threads; each step is one operation of a dict, so without a lock.

    Attributes:
        moves: changes whenever something arrives; it is compared, and counts nothing exactly.
        waiting_for: the side that a listing or a deletion waits for, if one does.
    """

    def __init__(self) -> None:
        self.moves = 0
        self.waiting_for: StorageBackend | None = None
        self._sizes: dict[str, int] = {}
        self._asked: dict[str, StorageBackend] = {}
        self._unreachable: dict[object, tuple[float, str]] = {}

    @property
    def bytes(self) -> int:
        """Bytes of what is under way. Of an object that is tried again, the most that any try came to."""
        return sum(tuple(self._sizes.values()))

    def moved(self, identifier: str, size: int) -> None:
        """Say that *size* bytes of the object have passed so far, in this try."""
        self.moves += 1
        if size > self._sizes.get(identifier, 0):
            self._sizes[identifier] = size

    def settle(self, identifier: str) -> None:
        """Forget an object, which from now on is counted by another, or not at all."""
        self._sizes.pop(identifier, None)

    def ask(self, key: str, backend: StorageBackend) -> None:
        """Say that the work called *key* waits for *backend* from now on."""
        self._asked[key] = backend

    def answered(self, key: str) -> None:
        """Say that the work called *key* waits for nobody."""
        self._asked.pop(key, None)

    def unreachable(self, key: object, location: str | None, since: float) -> None:
        """Say that the work called *key* waits, since then (`time.monotonic()`), for what it cannot reach."""
        if location is not None:
            self._unreachable[key] = since, host_of(location)

    def there_again(self, key: object) -> None:
        """Say that it has reached it."""
        self._unreachable.pop(key, None)

    def outage(self) -> tuple[str, float] | None:
        """Who cannot be reached, by name, and since when; None if nobody is waited for."""
        found = tuple(self._unreachable.values())
        if not found:
            return None
        return " and ".join(dict.fromkeys(host for _, host in found)), min(since for since, _ in found)

    def hosts(self) -> str:
        """Who is waited for, by name; "" if nobody is."""
        asked = (self.waiting_for, *tuple(self._asked.values()))
        found = (host_of(location_of(backend)) for backend in asked if backend is not None)
        return " and ".join(dict.fromkeys(found))


def host_of(location: str) -> str:
    """The part of a location that names who is asked: a host; else a bucket, a path, or all of it."""
    try:
        url = urlsplit(location)
        if url.scheme == "s3":
            endpoint = parse_qs(url.query).get("endpoint_url")
            return (urlsplit(endpoint[0]).hostname if endpoint else None) or f"s3://{url.netloc}"
    except ValueError:  # of no URL, as "fallback(a|b)" with brackets in it
        return location
    if url.netloc:
        return ", ".join(_without_port(host) for host in url.netloc.rpartition("@")[2].split(","))
    if "://" not in location:
        return location
    return f"/{url.path.lstrip('/')}" if url.path.startswith("//") else url.path


def _without_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return name.strip("[]") if name and port.isdecimal() else host.strip("[]")
