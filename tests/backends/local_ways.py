"""LocalStorage as it works where the kernel or the file system lacks something, and what its tests share."""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from storage_backend import LocalStorage

NOBODY = 65534


class WalkingStorage(LocalStorage):
    """As on a kernel without openat2."""

    _openat2 = False


class NamingStorage(LocalStorage):
    """As on a file system without O_TMPFILE."""

    _tmpfile = False


class BareStorage(WalkingStorage, NamingStorage):
    """As on a system with neither."""


WAYS = (LocalStorage, WalkingStorage)
"""Both ways to resolve a path."""


def as_nobody(act: Callable[[], Any]) -> Any:
    """What *act* returns, or the exception that it raises, in a process of a user who owns nothing.

    Root reads everything, so its own denials prove nothing.
    """

    def become_nobody() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)

    return in_child(become_nobody, act)


def without_openat2(code: int, act: Callable[[], Any]) -> Any:
    """What *act* returns, or the exception that it raises, in a process whose openat2 always fails with *code*."""
    if sys.platform != "linux":
        pytest.skip("openat2 is Linux's")

    def forbid() -> None:
        # A seccomp filter (seccomp(2), linux/filter.h): load the call's number; if it is 437, fail; else go on.
        steps = [
            (0x20, 0, 0, 0),
            (0x15, 0, 1, 437),
            (0x06, 0, 0, 0x00050000 | code),
            (0x06, 0, 0, 0x7FFF0000),
        ]
        listing = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
        program = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(listing)))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program):
            raise OSError(ctypes.get_errno(), "no seccomp filters here")

    return in_child(forbid, act)


def in_child(prepare: Callable[[], None], act: Callable[[], Any]) -> Any:
    """What *act* returns, or the exception that either raises, in a forked process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            try:
                prepare()
                result = act()
            except Exception as error:  # noqa: BLE001 - it is the result
                result = error
            os.write(writer, pickle.dumps(result))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return pickle.loads(answer)


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of 1 MiB at *place*."""
    place.mkdir(parents=True, exist_ok=True)
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs takes root on Linux")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        # Lazily: what a server still runs there may take a moment to end.
        subprocess.run(["umount", "--lazy", place], check=True)


# Swaps names until its standard input ends, and counts how often in the file it was given. "exchange a b" puts each in
# the other's place in one step; "link target name" puts a symlink at a name, over whatever is there; "prune a b" removes
# each if it is empty. It looks at its input after an odd number of swaps: on one processor, that is where it is made to
# wait, and after an even number each name would always be found where it began.
_SWAPPER = """
import contextlib, ctypes, mmap, os, select, sys, time
libc = ctypes.CDLL(None, use_errno=True)
counter = mmap.mmap(int(sys.argv[2]), 8)
swaps = 0
orders = [line.split() for line in sys.argv[1].splitlines()]
print("ready", flush=True)
over = select.poll()
over.register(0, select.POLLIN)
while swaps % 63 or not over.poll(0):
    for verb, first, second in orders:
        if verb == "exchange":
            if libc.renameat2(-100, os.fsencode(first), -100, os.fsencode(second), 2):
                sys.exit("renameat2: " + os.strerror(ctypes.get_errno()))
        elif verb == "prune":
            for place in (first, second):
                with contextlib.suppress(OSError):
                    os.rmdir(place)
            time.sleep(0.002)  # with a processor of its own, it would leave nobody the time to use what was made
        else:
            os.symlink(first, second + ".swapper")
            os.rename(second + ".swapper", second)
    swaps += 1
    counter[:] = swaps.to_bytes(8, "little")
"""


class Swapper:
    """Swaps names in another process for as long as its `with` lasts."""

    PATIENCE = 60.0  # seconds for what must be met to be met

    def __init__(self, *orders: tuple[str, str | Path, str | Path]) -> None:
        self._orders = "\n".join(" ".join(map(str, order)) for order in orders)

    def __enter__(self) -> Self:
        if sys.platform != "linux":
            pytest.skip("names are exchanged in one step by renameat2, which is Linux's")
        with tempfile.TemporaryFile() as counter:
            counter.truncate(8)
            self._counter = mmap.mmap(counter.fileno(), 8)
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SWAPPER, self._orders, str(counter.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[counter.fileno()],
            )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        return self

    def rounds(self, least: int, *, swaps: int, met: Callable[[], bool] = lambda: True) -> Iterator[int]:
        """Counts *least* rounds, and more until the names were swapped *swaps* times and what must be met was *met*.

        How two processes take turns is the system's affair: a fixed number of rounds meets too little on some machine.
        """
        since = time.monotonic()
        number = 0
        while number < least or self.swaps < swaps or not met():
            assert number < least or time.monotonic() - since < self.PATIENCE, (number, self.swaps)
            yield number
            number += 1

    @property
    def swaps(self) -> int:
        """How often names were swapped so far."""
        return int.from_bytes(self._counter[:], "little")

    def __exit__(self, *exception: object) -> None:
        self._process.communicate(b"enough")
        self._counter.close()
        assert self._process.returncode == 0
