"""told_size: the size of a file, unless its file system does not know it."""

from __future__ import annotations

import functools
import os
import stat
from pathlib import Path

# File systems of the kernel, whose files are made as they are read: their sizes are 0, or a page (proc(5), sysfs(5)).
_MADE = frozenset(
    [
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "efivarfs",
        "fusectl",
        "nsfs",
        "proc",
        "pstore",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "sysfs",
        "tracefs",
    ]
)
_ALWAYS, _UNLESS_ZERO, _NEVER = range(3)


def told_size(facts: os.stat_result) -> int | None:
    """The size of a regular file in bytes; None where only reading shows it, and of what is no regular file.

    Of a file in user space (FUSE), a size of 0 may mean either.
    """
    told = _how_told(facts.st_dev)
    size = facts.st_size
    if (told == _ALWAYS or (told == _UNLESS_ZERO and size)) and stat.S_ISREG(facts.st_mode):
        return size
    return None


@functools.cache  # a mount stays what it is
def _how_told(device: int) -> int:
    if os.major(device):  # a disk
        return _ALWAYS
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # not Linux
        return _ALWAYS
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == number:
            kind = rest.split()[0]
            if kind in _MADE:
                return _NEVER
            return _UNLESS_ZERO if kind.partition(".")[0] == "fuse" else _ALWAYS
    return _ALWAYS
