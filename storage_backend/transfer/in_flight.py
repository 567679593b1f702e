"""InFlight: the bytes of unfinished objects, and the side that is being waited for."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from storage_backend.base import StorageBackend
from storage_backend.defensive import location_of


class InFlight:
    """The state that progress events show. Used from many threads, without a lock: each method does one operation on a dict.

    Attributes:
        moves: changes whenever bytes arrive. Only for comparison: concurrent updates may be lost.
        waiting_for: the side that a listing or a deletion waits for; None if neither does.
    """

    def __init__(self) -> None:
        self.moves = 0
        self.waiting_for: StorageBackend | None = None
        self._sizes: dict[str, int] = {}
        self._awaited: dict[str, StorageBackend] = {}
        self._unreachable: dict[object, tuple[float, str]] = {}

    @property
    def bytes(self) -> int:
        """The bytes of unfinished objects; of a retried object, the maximum over its attempts."""
        return sum(tuple(self._sizes.values()))

    def moved(self, identifier: str, size: int) -> None:
        """Note that *size* bytes of the object were read so far, in this attempt."""
        self.moves += 1
        if size > self._sizes.get(identifier, 0):
            self._sizes[identifier] = size

    def settle(self, identifier: str) -> None:
        """Forget an object, once the report counts it."""
        self._sizes.pop(identifier, None)

    def wait_for(self, key: str, backend: StorageBackend) -> None:
        """Note that the work *key* waits for *backend*."""
        self._awaited[key] = backend

    def stop_waiting(self, key: str) -> None:
        """Note that the work *key* waits for neither side."""
        self._awaited.pop(key, None)

    def unreachable(self, key: object, location: str | None, since: float) -> None:
        """Note that the work *key* has not reached *location* since then (`time.monotonic()`)."""
        if location is not None:
            self._unreachable[key] = since, host_of(location)

    def reached(self, key: object) -> None:
        """Note that the work *key* reached its location again."""
        self._unreachable.pop(key, None)

    def outage(self) -> tuple[str, float] | None:
        """The names of the unreachable hosts, and since when; None if there are none."""
        found = tuple(self._unreachable.values())
        if not found:
            return None
        return " and ".join(dict.fromkeys(host for _, host in found)), min(since for since, _ in found)

    def hosts(self) -> str:
        """The names of the hosts being waited for; "" if there are none."""
        awaited = (self.waiting_for, *tuple(self._awaited.values()))
        found = (host_of(location_of(backend)) for backend in awaited if backend is not None)
        return " and ".join(dict.fromkeys(found))


def host_of(location: str) -> str:
    """The part of a location to display: the host; else the bucket, the path, or all of it."""
    try:
        url = urlsplit(location)
        if url.scheme == "s3":
            endpoint = parse_qs(url.query).get("endpoint_url")
            return (urlsplit(endpoint[0]).hostname if endpoint else None) or f"s3://{url.netloc}"
    except ValueError:  # not a URL, for example "fallback(a|b)" with brackets in it
        return location
    if url.netloc:
        return ", ".join(_without_port(host) for host in url.netloc.rpartition("@")[2].split(","))
    if "://" not in location:
        return location
    return f"/{url.path.lstrip('/')}" if url.path.startswith("//") else url.path


def _without_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return name.strip("[]") if name and port.isdecimal() else host.strip("[]")
