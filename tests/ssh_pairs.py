"""Two ways to one directory of an SSH server, each of which can be broken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from storage_backend import RemoteStorage
from storage_backend.identifiers import RESERVED
from tests.ssh_proxy import Direction, Proxy
from tests.ssh_servers import SSHPlace


@dataclass(frozen=True)
class Pair:
    """Two proxies before one server.

    Attributes:
        first: the preferred one.
        second: the other one.
        place: the directory behind both.
    """

    first: Proxy
    second: Proxy
    place: SSHPlace

    @property
    def endpoints(self) -> list[list[str | int | None]]:
        """Both, in this order."""
        return [[self.first.host, self.first.port], [self.second.host, self.second.port]]

    def config(self, **more: Any) -> Any:
        """An `ssh_config` with both endpoints."""
        return self.place.config(**{"endpoints": self.endpoints, **more})

    def storage(self, **more: Any) -> RemoteStorage:
        """A storage that uses the first, and has the second to fall back on."""
        return RemoteStorage(self.config(**more), self.place.base)

    def direct(self, **more: Any) -> RemoteStorage:
        """A storage that uses neither."""
        config: Any = self.place.config(**more)
        return RemoteStorage(config, self.place.base)

    def lose_first_after(self, count: int, direction: Direction) -> None:
        """Have the first die once *count* more bytes have gone through it: it refuses connections afterwards."""
        self.first.cut_after(count, direction, then_refuse=True)

    def lose_first(self) -> None:
        """Have the first die now."""
        self.first.refuse()
        self.first.cut()

    def lose_both(self) -> None:
        """Have both die now."""
        for proxy in (self.first, self.second):
            proxy.refuse()
            proxy.cut()

    def temporary(self) -> list[Path]:
        """What has a temporary name on the server's disk."""
        return sorted(self.place.local.rglob(f"{RESERVED}*"))

    def port_in_use(self, storage: RemoteStorage) -> Literal["first", "second"] | None:
        """Which way *storage* goes."""
        ports: dict[int | None, Literal["first", "second"]] = {
            self.first.port: "first",
            self.second.port: "second",
        }
        return ports.get(storage.port)


@contextmanager
def pair(place: SSHPlace) -> Iterator[Pair]:
    """Two ways to *place*, whose host keys are known under both."""
    with Proxy(place.host, place.port) as first, Proxy(place.host, place.port) as second:
        known = Path(place.known_hosts)
        keys = [line.split(maxsplit=1)[1] for line in known.read_text().splitlines() if line]
        mine = known.with_name(f"known_hosts-{first.port}-{second.port}")
        mine.write_text(
            "".join(
                f"[{host}]:{port} {key}\n"
                for host, port in [
                    (place.host, place.port),
                    (first.host, first.port),
                    (second.host, second.port),
                ]
                for key in dict.fromkeys(keys)
            )
        )
        ours = SSHPlace(
            place.host, place.port, place.user, place.key_filename, str(mine), place.base, place.local
        )
        try:
            yield Pair(first, second, ours)
        finally:
            mine.unlink(missing_ok=True)
