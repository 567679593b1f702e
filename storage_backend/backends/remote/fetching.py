"""Fetching: many small objects as one tar stream, which the server packs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeAlias

from storage_backend.backends.remote.objects import Objects
from storage_backend.backends.remote.operations import Place

FEWEST = 64  # objects that are worth a command
OBJECTS, BYTES = (
    1000,
    8 << 20,
)  # of a group, which is one command; bytes by what is known of the objects' sizes
LIMIT = 32 << 20  # bytes of a group, whatever they turn out to be
GROUPS = 2  # under way at a time, so that one is sent while another is used

Found: TypeAlias = tuple[Place, bytes]
Singly = Callable[[Iterator[Place]], Iterator[Found]]


def read(objects: Objects, places: Iterator[Place], singly: Singly) -> Iterator[Found]:
    """The content of each object, in no order.

    Args:
        objects: of the backend.
        places: of the objects.
        singly: reads what cannot be packed, and tells what cannot be read at all.
    """

    def fetch(group: Sequence[Place]) -> Sequence[bytes | None] | None:
        names = [place.path for place in group]
        return objects.link.run(None, lambda connection: connection.pack(names, LIMIT))

    under_way: deque[tuple[list[Place], Future[Sequence[bytes | None] | None]]] = deque()
    with ThreadPoolExecutor(GROUPS, "storage-backend-fetching") as pool:
        try:
            while True:
                while len(under_way) < GROUPS:
                    count = min(int(BYTES // max(objects.mean_size, 1)), OBJECTS)
                    group = list(islice(places, count)) if objects.link.connection().may("pack") else []
                    if len(group) < FEWEST:
                        # The last, or large ones, or all of a server that packs nothing.
                        yield from singly(iter(group))
                        break
                    under_way.append((group, pool.submit(fetch, group)))
                if not under_way:
                    break
                group, future = under_way.popleft()
                contents = future.result()
                if contents is None:
                    objects.mean_size = max(objects.mean_size, LIMIT / len(group))
                    yield from singly(iter(group))
                    continue
                missing = []
                for place, content in zip(group, contents, strict=True):
                    if content is None:
                        missing.append(place)
                    else:
                        yield place, content
                if missing:
                    yield from singly(iter(missing))
        finally:
            for _, future in under_way:
                future.cancel()
    yield from singly(places)
