"""Replacing: a file takes another's name on a server that renames over nothing, which is moved aside in the meantime.

It lies at `.~sb-old/TOKEN/NAME` in its own directory, and TOKEN, which begins with the time, is one writer's in one attempt. Whoever
finds it can tell what has become of that: if something has the name, it is newer; if nothing has, the writer was broken off or is
about to go on, and the old file goes back, of several the one that was moved last. A writer that is still there then finds the
name taken, and begins anew. So of the old and the new file one is always there, under its name or beside it.
"""

from __future__ import annotations

import posixpath
import stat
import time
from collections.abc import Callable, Generator, Sequence
from typing import TypeAlias, TypeVar

from storage_backend.backends.remote import sftp_packets as packets
from storage_backend.backends.remote.sftp_packets import (
    NO_SUCH_FILE,
    PERMISSION_DENIED,
    Reply,
    Request,
    SFTPEntry,
    StatusError,
)
from storage_backend.identifiers import RESERVED

T = TypeVar("T")
Steps: TypeAlias = Generator[Sequence[Request], Sequence[Reply], T]
Names: TypeAlias = Callable[[bytes], Steps[list[SFTPEntry]]]

ASIDE = f"{RESERVED}old".encode()
_TRIES = 30  # how often other writers may come in between
_REFUSALS = 4  # how often a server may refuse although nothing is seen in the way


def aside(path: bytes) -> bytes:
    """Where what is in the way of new files beside *path* is kept; it exists for as long as something is."""
    return posixpath.join(posixpath.dirname(path), ASIDE)


def replace(
    source: bytes, path: bytes, token: Callable[[], bytes], names: Names, post: Callable[[Request], None]
) -> Steps[None]:
    """Give *source* the name *path*, in place of the file there; if that fails, the old one has it again.

    Args:
        source: of the same file system; known to be there, or another's new file would be moved aside for nothing.
        path: of a file, or of nothing by now.
        token: gives a name that nothing has.
        names: lists a directory.
        post: sends a request whose reply nobody waits for.

    Raises:
        StatusError: the server refuses.
    """
    top = aside(path)
    reasons = 0
    for more in reversed(range(_TRIES)):
        mine = posixpath.join(top, b"%016x-%b" % (time.time_ns(), token()))
        kept = posixpath.join(mine, posixpath.basename(path))
        # All at once, so that nothing has the name for as short as can be.
        replies = yield [
            packets.mkdir_request(top),
            packets.mkdir_request(mine),
            packets.two_path_request(packets.RENAME, path, kept),
            packets.two_path_request(packets.RENAME, source, path),
        ]
        stays = _refusal(replies[2])
        moved = stays is None
        refused = _refusal(replies[3])
        if moved and refused is not None:
            # A server need not keep to the order.
            (reply,) = yield [packets.two_path_request(packets.RENAME, source, path)]
            refused = _refusal(reply)
        if moved and refused is None:
            for request in (
                packets.request(packets.REMOVE, kept),
                packets.request(packets.RMDIR, mine),
                packets.request(packets.RMDIR, top),
            ):
                post(request)
            return
        replies = yield [packets.request(packets.LSTAT, source), packets.request(packets.LSTAT, path)]
        ours, theirs = map(_seen, replies)
        # Another writer's, or what an attempt over a connection that was lost has left; or the old file goes back.
        yield from heal(posixpath.dirname(path), names)
        if refused is None:
            return
        if isinstance(ours, StatusError):
            raise ours
        if stays is not None and stays.code == PERMISSION_DENIED:
            raise stays
        # Nothing in the way: the server has another reason, unless another writer has just moved it.
        reasons += moved and not isinstance(theirs, int)
        if not more or reasons == _REFUSALS or (isinstance(theirs, int) and stat.S_ISDIR(theirs)):
            raise refused


def heal(directory: bytes, names: Names) -> Steps[int]:
    """Give the files that were moved aside in *directory* their names again, or remove those that have a successor.

    Returns:
        How many were removed.
    """
    removed = 0
    top = posixpath.join(directory, ASIDE)
    for token in sorted((yield from _inside(top, names)), reverse=True):
        mine = posixpath.join(top, token)
        for name in (yield from _inside(mine, names)):
            kept, path = posixpath.join(mine, name), posixpath.join(directory, name)
            (reply,) = yield [packets.request(packets.LSTAT, path)]
            newer = _seen(reply)
            if isinstance(newer, StatusError) and newer.code == NO_SUCH_FILE:
                yield [packets.two_path_request(packets.RENAME, kept, path)]
            elif _is_file(newer):
                (reply,) = yield [packets.request(packets.REMOVE, kept)]
                removed += _refusal(reply) is None
        yield [packets.request(packets.RMDIR, mine)]
    yield [packets.request(packets.RMDIR, top)]
    return removed


def _inside(directory: bytes, names: Names) -> Steps[list[bytes]]:
    try:
        found = yield from names(directory)
    except StatusError:
        return []  # it is gone, or not ours to see
    return [entry.name for entry in found if entry.name and b"/" not in entry.name]


def _refusal(reply: Reply) -> StatusError | None:
    """Why the server did not do it; None if it did."""
    try:
        packets.check(reply)
    except StatusError as error:
        return error
    return None


def _seen(reply: Reply) -> int | StatusError:
    """The mode of what has a name, 0 if the server does not tell it; or why it is not seen."""
    try:
        return packets.attributes_in(reply).mode or 0
    except StatusError as error:
        return error


def _is_file(seen: int | StatusError) -> bool:
    """Whether something is there that is no directory."""
    return isinstance(seen, int) and not stat.S_ISDIR(seen)
