"""Overwrites a file on a server whose RENAME does not replace: moves the old file aside, then renames the new one.

The old file is kept at `.~sb-old/TOKEN/NAME` in its own directory. TOKEN begins with the time and is unique to one attempt of one
writer. Any client can repair: if the name exists, the file there is newer, and the old one is removed; if not, the writer was killed
or is still busy, and the old file (of several, the one moved last) gets its name back. A writer that is still running then finds
that the name exists and starts again. So at any time the old or the new file exists, under its name or aside.
"""

from __future__ import annotations

import posixpath
import stat
import time
from collections.abc import Callable
from typing import TypeAlias

from storage_backend.backends.remote import sftp_packets as packets
from storage_backend.backends.remote.sftp_packets import (
    NO_SUCH_FILE,
    PERMISSION_DENIED,
    Reply,
    Request,
    SFTPEntry,
    StatusError,
    Steps,
)
from storage_backend.identifiers import RESERVED

Names: TypeAlias = Callable[[bytes], Steps[list[SFTPEntry]]]

ASIDE = f"{RESERVED}old".encode()
_TRIES = 30  # interference by other writers
_REFUSALS = 4  # by the server, although nothing is in the way


def aside(path: bytes) -> bytes:
    """The directory for files moved aside, next to *path*. It exists only while it is not empty."""
    return posixpath.join(posixpath.dirname(path), ASIDE)


def replace(
    source: bytes, path: bytes, token: Callable[[], bytes], names: Names, post: Callable[[Request], None]
) -> Steps[None]:
    """Rename *source* to *path*, replacing the file there; if that fails, the old file gets its name back.

    Args:
        source: on the same file system; must exist, or another writer's new file would be moved aside for nothing.
        path: of a file, which may be gone by now.
        token: returns an unused name.
        names: lists a directory.
        post: sends a request without waiting for its reply.

    Raises:
        StatusError: the server refuses.
    """
    top = aside(path)
    reasons = 0
    for more in reversed(range(_TRIES)):
        mine = posixpath.join(top, b"%016x-%b" % (time.time_ns(), token()))
        kept = posixpath.join(mine, posixpath.basename(path))
        # In one exchange: between the two renames, the name does not exist.
        replies = yield [
            packets.mkdir_request(top),
            packets.mkdir_request(mine),
            packets.two_path_request(packets.RENAME, path, kept),
            packets.two_path_request(packets.RENAME, source, path),
        ]
        stays = packets.refusal(replies[2])
        moved = stays is None
        refused = packets.refusal(replies[3])
        if moved and refused is not None:
            # A server may reorder requests.
            (reply,) = yield [packets.two_path_request(packets.RENAME, source, path)]
            refused = packets.refusal(reply)
        if moved and refused is None:
            for request in (
                packets.request(packets.REMOVE, kept),
                packets.request(packets.RMDIR, mine),
                packets.request(packets.RMDIR, top),
            ):
                post(request)
            return
        replies = yield [packets.request(packets.LSTAT, source), packets.request(packets.LSTAT, path)]
        ours, theirs = map(_mode_or_error, replies)
        # Repair what another writer or an attempt on a lost connection left aside, and restore our own old file.
        yield from heal(posixpath.dirname(path), names)
        if refused is None:
            return
        if isinstance(ours, StatusError):
            raise ours
        if stays is not None and stays.code == PERMISSION_DENIED:
            raise stays
        # If nothing is in the way, the server has another reason, unless another writer just moved the file.
        reasons += moved and not isinstance(theirs, int)
        if not more or reasons == _REFUSALS or (isinstance(theirs, int) and stat.S_ISDIR(theirs)):
            raise refused


def heal(directory: bytes, names: Names) -> Steps[int]:
    """Restore the files moved aside in *directory*, or remove those that have a successor.

    Returns:
        How many were removed.
    """
    removed = 0
    top = posixpath.join(directory, ASIDE)
    for token in sorted((yield from _names_in(top, names)), reverse=True):
        mine = posixpath.join(top, token)
        for name in (yield from _names_in(mine, names)):
            kept, path = posixpath.join(mine, name), posixpath.join(directory, name)
            (reply,) = yield [packets.request(packets.LSTAT, path)]
            newer = _mode_or_error(reply)
            if isinstance(newer, StatusError):
                if newer.code == NO_SUCH_FILE:
                    yield [packets.two_path_request(packets.RENAME, kept, path)]
            elif not stat.S_ISDIR(newer):
                (reply,) = yield [packets.request(packets.REMOVE, kept)]
                removed += packets.refusal(reply) is None
        yield [packets.request(packets.RMDIR, mine)]
    yield [packets.request(packets.RMDIR, top)]
    return removed


def _names_in(directory: bytes, names: Names) -> Steps[list[bytes]]:
    try:
        found = yield from names(directory)
    except StatusError:
        return []  # missing, or not readable
    return [entry.name for entry in found if entry.name and b"/" not in entry.name]


def _mode_or_error(reply: Reply) -> int | StatusError:
    """The mode in a reply, 0 if the server does not send it; or the error."""
    try:
        return packets.attributes_in(reply).mode or 0
    except StatusError as error:
        return error
