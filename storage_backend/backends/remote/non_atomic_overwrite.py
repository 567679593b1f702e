"""Overwrite a file on a server whose RENAME does not replace: the old file is moved aside, and the new one takes its name.

The old file lies at `.~sb-old/TOKEN/NAME` in its own directory. TOKEN begins with the time and belongs to one attempt of one writer.
Whoever finds such a file can repair: if the name is taken, the file there is newer, and the old one is removed; if it is free, the
writer was killed or has not finished, and the old file (of several the one moved last) gets its name back. A writer that is still
there then finds the name taken, and starts again. So the old or the new file exists at any time, under its name or aside.
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
_TRIES = 30  # how often other writers may interfere
_REFUSALS = 4  # how often a server may refuse although nothing is in the way


def aside(path: bytes) -> bytes:
    """The directory for files moved aside, in the directory of *path*. It exists only while it holds something."""
    return posixpath.join(posixpath.dirname(path), ASIDE)


def replace(
    source: bytes, path: bytes, token: Callable[[], bytes], names: Names, post: Callable[[Request], None]
) -> Steps[None]:
    """Give *source* the name *path*, in place of the file there; if that fails, the old one gets its name back.

    Args:
        source: on the same file system; it must exist, or another writer's new file would be moved aside for nothing.
        path: of a file, or of nothing by now.
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
        # In one exchange: until the last is done, nothing has the name.
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
            # A server need not keep the order of requests.
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
        # Another writer's leftovers, or those of an attempt on a lost connection; or our own: the old file goes back.
        yield from heal(posixpath.dirname(path), names)
        if refused is None:
            return
        if isinstance(ours, StatusError):
            raise ours
        if stays is not None and stays.code == PERMISSION_DENIED:
            raise stays
        # Nothing is in the way, so the server has another reason, unless another writer has just moved the file.
        reasons += moved and not isinstance(theirs, int)
        if not more or reasons == _REFUSALS or (isinstance(theirs, int) and stat.S_ISDIR(theirs)):
            raise refused


def heal(directory: bytes, names: Names) -> Steps[int]:
    """Give the files that were moved aside in *directory* their names back, or remove those that have a successor.

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
        return []  # it is gone, or we may not list it
    return [entry.name for entry in found if entry.name and b"/" not in entry.name]


def _mode_or_error(reply: Reply) -> int | StatusError:
    """The mode of a file, 0 if the server does not send it; or why there is none."""
    try:
        return packets.attributes_in(reply).mode or 0
    except StatusError as error:
        return error
