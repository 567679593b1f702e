"""Owners: temporary names identify the process that made them, so that files of dead processes can be removed."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

from storage_backend.identifiers import RESERVED

_NAME = re.compile(
    rf"{re.escape(RESERVED)}([0-9a-f]{{8}})([0-9a-f]{{8}})([0-9a-f]{{8}})[0-9a-f]{{12}}(-\d+)?"
)
_NOWHERE = "0" * 8


def temporary_name() -> str:
    """A unique name that no object can have; it identifies this process."""
    return f"{RESERVED}{_owner(os.getpid())}{os.urandom(6).hex()}"


def is_abandoned(name: str) -> bool:
    """Whether *name* is a temporary name of a dead process of this machine.

    False if that is unknown: for names made on another machine, in another container or before the last boot.
    """
    found = _NAME.fullmatch(name)
    if found is None or _NOWHERE in {found[1], found[3]} or found[1] != _machine():
        return False
    started = _started(int(found[2], 16))
    return started != found[3] if started is not None else not _exists(int(found[2], 16))


def tag() -> bytes:
    """7 bytes that identify this process: 4 of the machine, 3 of the process."""
    return _tag(os.getpid())


def living() -> frozenset[bytes]:
    """The tags of all processes of this machine; empty if unknown."""
    with suppress(OSError):
        if _started(1) is None:  # /proc hides the processes of other users (hidepid, proc(5))
            return frozenset()
        return frozenset(_tag(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdecimal())
    return frozenset()


def is_abandoned_tag(found: bytes, living: frozenset[bytes]) -> bool:
    """Whether this is the tag of a dead process of this machine; False if that is unknown."""
    machine = bytes.fromhex(_machine())
    return any(machine) and found[:4] == machine and bool(living) and found not in living


@functools.lru_cache(maxsize=1024)
def _digest(pid: int, started: str | None) -> bytes:
    return hashlib.sha256(f"{pid} {started}".encode()).digest()[:3]


def _tag(pid: int) -> bytes:
    started = _started(pid)
    return bytes.fromhex(_machine() if started is not None else _NOWHERE) + _digest(pid, started)


@functools.lru_cache(maxsize=1)
def _owner(pid: int) -> str:
    """24 hexadecimal digits. A forked child has its own."""
    return f"{_machine()}{pid:08x}{_started(pid) or _NOWHERE}"


@functools.cache
def _machine() -> str:
    """Identifies this boot of this machine and this PID namespace; zeros if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - of what the link stands for
    except OSError:
        return _NOWHERE
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:8]


def _exists(pid: int) -> bool:
    """Whether there is such a process, also one that /proc hides (hidepid, proc(5)) or a zombie."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _started(pid: int) -> str | None:
    """The start time of a process, in clock ticks since the boot (proc_pid_stat(5), starttime); None if it cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return f"{int(fields[19]) & 0xFFFFFFFF:08x}"
    except (OSError, IndexError, ValueError):
        return None
