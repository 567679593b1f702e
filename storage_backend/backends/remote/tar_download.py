"""Reads many small objects as tar streams, which the server's tar creates."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import TypeAlias

from storage_backend.backends.remote.failover import Failover
from storage_backend.backends.remote.remote_path import RemotePath
from storage_backend.threads import DaemonPool, result_of

MIN_OBJECTS = 64  # fewer are not worth a command
MAX_OBJECTS, MAX_BYTES = 1000, 8 << 20  # of a group, which is one command; bytes as estimated by `MeanSize`
LIMIT = 32 << 20  # bytes of a group, whatever the actual sizes
GROUPS = 2  # in flight, so that one is sent while another is used
INITIAL_MEAN = 64 << 10  # bytes

Content: TypeAlias = tuple[RemotePath, bytes]
OneByOne = Callable[[Iterator[RemotePath]], Iterator[Content]]


class MeanSize:
    """Estimates the mean size of a backend's objects from those that batches have read.

    Attributes:
        bytes: the estimate.
    """

    def __init__(self) -> None:
        self.bytes: float = INITIAL_MEAN

    def note(self, size: int) -> None:
        """Update the estimate; sizes are capped so that one large object has little weight."""
        self.bytes += (min(size, 1 << 20) - self.bytes) / 64


def read(
    failover: Failover, paths: Iterator[RemotePath], one_by_one: OneByOne, sizes: MeanSize
) -> Iterator[Content]:
    """The content of each object, in no order.

    Args:
        failover: provides the connection.
        paths: of the objects.
        one_by_one: reads the objects that tar did not send, and notes failures.
        sizes: estimates how many objects fit in a group.
    """

    def fetch(group: Sequence[RemotePath]) -> list[bytes | None] | None:
        names = [path.path for path in group]
        return failover.run(None, lambda connection, _: connection.pack(names, LIMIT))

    def results(group: list[RemotePath], contents: list[bytes | None] | None) -> Iterator[Content]:
        if contents is None:
            sizes.bytes = max(sizes.bytes, LIMIT / len(group))
            yield from one_by_one(iter(group))
            return
        missing = []
        # From the end, so that each content is released once it is yielded.
        while contents:
            path, content = group.pop(), contents.pop()
            if content:
                yield path, content
            else:
                # Also read an empty one again: procfs reports a size of 0, which tar believes.
                missing.append(path)
        if missing:
            yield from one_by_one(iter(missing))

    in_flight: deque[tuple[list[RemotePath], Future[list[bytes | None] | None]]] = deque()
    with DaemonPool(GROUPS, "storage-backend-tar-download") as pool:
        try:
            while True:
                while len(in_flight) < GROUPS:
                    count = min(int(MAX_BYTES // max(sizes.bytes, 1)), MAX_OBJECTS)
                    group = list(islice(paths, count)) if failover.connection().may_use_tar("pack") else []
                    if len(group) < MIN_OBJECTS:
                        # The last few, or large objects, or no tar on the server.
                        yield from one_by_one(iter(group))
                        break
                    if len(group) < count and not in_flight:
                        # The only group needs no thread.
                        yield from results(group, fetch(group))
                        break
                    in_flight.append((group, pool.submit(fetch, group)))
                if not in_flight:
                    break
                group, future = in_flight.popleft()
                contents = result_of(future)
                del future
                yield from results(group, contents)
        finally:
            for _, future in in_flight:
                future.cancel()
    yield from one_by_one(paths)
