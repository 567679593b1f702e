"""Read many small objects as one tar stream, which the server makes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import TypeAlias

from storage_backend.backends.remote.failover import Failover
from storage_backend.backends.remote.remote_path import RemotePath
from storage_backend.threads import DaemonPool, result_of

FEWEST = 64  # objects that are worth a command
OBJECTS, BYTES = 1000, 8 << 20  # of a group, which is one command; bytes as estimated by `MeanSize`
LIMIT = 32 << 20  # bytes of a group, whatever the objects' sizes turn out to be
GROUPS = 2  # under way at a time, so that one is sent while another is used
FIRST_MEAN = 64 << 10  # bytes of an object, before anything is known

Content: TypeAlias = tuple[RemotePath, bytes]
OneByOne = Callable[[Iterator[RemotePath]], Iterator[Content]]


class MeanSize:
    """Estimates the size of a backend's objects from those that batches have read.

    Attributes:
        bytes: the estimate.
    """

    def __init__(self) -> None:
        self.bytes: float = FIRST_MEAN

    def note(self, size: int) -> None:
        """Take an object into account; a single large one counts for no more than a few."""
        self.bytes += (min(size, 1 << 20) - self.bytes) / 64


def read(
    failover: Failover, paths: Iterator[RemotePath], one_by_one: OneByOne, sizes: MeanSize
) -> Iterator[Content]:
    """The content of each object, in no order.

    Args:
        failover: chooses the connection.
        paths: of the objects.
        one_by_one: reads what tar did not give, and reports what cannot be read.
        sizes: estimates how many objects fit into a group.
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
        # From the end: each is released as it is yielded.
        while contents:
            path, content = group.pop(), contents.pop()
            if content:
                yield path, content
            else:
                # Also an empty one: files of procfs report 0 bytes, and tar believes that.
                missing.append(path)
        if missing:
            yield from one_by_one(iter(missing))

    under_way: deque[tuple[list[RemotePath], Future[list[bytes | None] | None]]] = deque()
    with DaemonPool(GROUPS, "storage-backend-tar-download") as pool:
        try:
            while True:
                while len(under_way) < GROUPS:
                    count = min(int(BYTES // max(sizes.bytes, 1)), OBJECTS)
                    group = list(islice(paths, count)) if failover.connection().may_use_tar("pack") else []
                    if len(group) < FEWEST:
                        # The last ones, or large ones, or the server has no tar.
                        yield from one_by_one(iter(group))
                        break
                    if len(group) < count and not under_way:
                        # The only group: no thread is needed.
                        yield from results(group, fetch(group))
                        break
                    under_way.append((group, pool.submit(fetch, group)))
                if not under_way:
                    break
                group, future = under_way.popleft()
                contents = result_of(future)
                del future
                yield from results(group, contents)
        finally:
            for _, future in under_way:
                future.cancel()
    yield from one_by_one(paths)
