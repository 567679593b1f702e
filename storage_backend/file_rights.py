"""Gives a replacing file the permission bits, ACL, extended attributes, owner and group of the file it replaces."""

from __future__ import annotations

import errno
import os
import stat

_HAS_ATTRIBUTES = hasattr(os, "listxattr")
_ACL = "system.posix_acl_access"
# Not capabilities or signatures: they belong to the old content.
_KEPT = ("user.", "system.", "security.selinux")
# Not every platform has every flag. With these an open neither blocks nor makes a controlling terminal.
_CALM = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_CLOEXEC", 0)
)


def entry_facts(directory: int, name: str | bytes) -> os.stat_result | None:
    """The status of a directory entry, not followed; None if there is none.

    Raises:
        OSError: with ENXIO, it is a device, a pipe or a socket.
    """
    try:
        facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    mode = facts.st_mode
    if stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode):
        return facts
    raise OSError(errno.ENXIO, "not a regular file", os.fsdecode(name))


def take_over(fd: int, directory: int | None, name: str | bytes, facts: os.stat_result) -> None:
    """Give a new file the permission bits, ACL and extended attributes of the one it replaces, and owner and group if permitted.

    Nobody gets more rights than before: if the group cannot be kept, the new group gets the rights of others.

    Args:
        fd: of the new file.
        directory: of the old file; None if *name* is its path.
        name: of the old one.
        facts: of the old one.
    """
    give_rights(fd, facts, attributes_of(directory, name))


def give_rights(fd: int, facts: os.stat_result, attributes: dict[str, bytes] | None) -> None:
    """As `take_over`, with the *attributes* of the old file as `attributes_of` returned them."""
    new = os.fstat(fd)
    own = os.listxattr(fd) if attributes is not None else []
    same_owners = new.st_uid == facts.st_uid and new.st_gid == facts.st_gid
    if same_owners and new.st_mode == facts.st_mode and not attributes and not own:
        return
    mode = facts.st_mode & 0o777
    now = new.st_mode & 0o777
    if not same_owners:
        now = mode & 0o700
        os.fchmod(fd, now)  # not for the other group yet
        if not _chowned(fd, facts.st_uid, facts.st_gid) and not _chowned(fd, -1, facts.st_gid):
            mode &= ~0o070 | (mode & 0o007) << 3
    if attributes or own:
        if not _give_attributes(fd, attributes or {}, own):
            mode &= ~0o070  # the bits of the group were those of the ACL
        now = -1
    if now != mode:
        os.fchmod(fd, mode)


def _chowned(fd: int, owner: int, group: int) -> bool:
    try:
        os.fchown(fd, owner, group)
    except OSError:  # not permitted, or not supported by the file system
        return False
    return True


def attributes_of(directory: int | None, name: str | bytes) -> dict[str, bytes] | None:
    """The ACL and the extended attributes that a replacing file takes over; None if the file system has none."""
    try:
        # With a descriptor it takes half the time, but the file may not be readable.
        opened = os.open(name, _CALM, dir_fd=directory)
    except PermissionError:
        return _attributes(name if directory is None else f"/proc/self/fd/{directory}/{os.fsdecode(name)}")
    except OSError:
        return None
    try:
        return _attributes(opened)
    finally:
        os.close(opened)


def _attributes(place: int | str | bytes) -> dict[str, bytes] | None:
    """The kept attributes of a descriptor, or of a path, without following a symlink."""
    if not _HAS_ATTRIBUTES:
        return None
    follow = isinstance(place, int)
    try:
        names = os.listxattr(place, follow_symlinks=follow)
        kept = [each for each in names if each.startswith(_KEPT)] if names else names
        return {each: os.getxattr(place, each, follow_symlinks=follow) for each in kept} if kept else {}
    except OSError:
        return None


def _give_attributes(fd: int, old: dict[str, bytes], own: list[str]) -> bool:
    """Set the attributes of the old file on a file that has the attributes *own*. Returns whether the ACL is the same now."""
    if _ACL in own and _ACL not in old:  # it came from the directory
        os.removexattr(fd, _ACL)
    whole = True
    for name, value in old.items():
        try:
            os.setxattr(fd, name, value)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise
            whole = whole and name != _ACL
    return whole
