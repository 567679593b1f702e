"""Fetching: many small objects as one tar stream, which the server packs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import TypeAlias

from storage_backend.backends.remote.objects import Objects
from storage_backend.backends.remote.sftp_operations import RemotePath
from storage_backend.threads import DaemonPool, result_of

FEWEST = 64  # objects that are worth a command
OBJECTS, BYTES = (
    1000,
    8 << 20,
)  # of a group, which is one command; bytes by what is known of the objects' sizes
LIMIT = 32 << 20  # bytes of a group, whatever they turn out to be
GROUPS = 2  # under way at a time, so that one is sent while another is used

FindRecord: TypeAlias = tuple[RemotePath, bytes]
Singly = Callable[[Iterator[RemotePath]], Iterator[FindRecord]]


def read(objects: Objects, places: Iterator[RemotePath], singly: Singly) -> Iterator[FindRecord]:
    """The content of each object, in no order.

    Args:
        objects: of the backend.
        places: of the objects.
        singly: reads what cannot be packed, and tells what cannot be read at all.
    """

    def fetch(group: Sequence[RemotePath]) -> list[bytes | None] | None:
        names = [place.path for place in group]
        return objects.link.run(None, lambda connection: connection.pack(names, LIMIT))

    def given(group: list[RemotePath], contents: list[bytes | None] | None) -> Iterator[FindRecord]:
        if contents is None:
            objects.mean_size = max(objects.mean_size, LIMIT / len(group))
            yield from singly(iter(group))
            return
        missing = []
        # From the end, and each let go of as it is given.
        while contents:
            place, content = group.pop(), contents.pop()
            if not content:
                # Or a file that says of itself that it is empty, as those of procfs do, and tar believes it.
                missing.append(place)
            else:
                yield place, content
        if missing:
            yield from singly(iter(missing))

    under_way: deque[tuple[list[RemotePath], Future[list[bytes | None] | None]]] = deque()
    with DaemonPool(GROUPS, "storage-backend-fetching") as pool:
        try:
            while True:
                while len(under_way) < GROUPS:
                    count = min(int(BYTES // max(objects.mean_size, 1)), OBJECTS)
                    group = list(islice(places, count)) if objects.link.connection().may("pack") else []
                    if len(group) < FEWEST:
                        # The last, or large ones, or all of a server that packs nothing.
                        yield from singly(iter(group))
                        break
                    if len(group) < count and not under_way:
                        # There is nothing to be done meanwhile.
                        yield from given(group, fetch(group))
                        break
                    under_way.append((group, pool.submit(fetch, group)))
                if not under_way:
                    break
                yield from given(*_waited(*under_way.popleft()))
        finally:
            for _, future in under_way:
                future.cancel()
    yield from singly(places)


def _waited(
    group: list[RemotePath], future: Future[list[bytes | None] | None]
) -> tuple[list[RemotePath], list[bytes | None] | None]:
    return group, result_of(future)
