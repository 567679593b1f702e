"""What a process holds beside memory: descriptors, threads and children; and what was left behind of it.

As a plugin of pytest, this fails a module after which the process holds more than before.
"""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 10.0  # seconds for threads, children and the other ends of connections to go

_FDS = Path("/proc/self/fd")
_TASKS = Path("/proc/self/task")


@dataclass(frozen=True)
class Held:
    """What this process holds.

    Attributes:
        descriptors: by what they lead to, since their numbers are used again.
        threads: those that Python knows.
        children: by their command lines, since a server may be started again; one that ended and was not waited for is
            there, too.
    """

    descriptors: Counter[str] = field(default_factory=Counter)
    threads: frozenset[threading.Thread] = frozenset()
    children: Counter[str] = field(default_factory=Counter)

    @classmethod
    def now(cls) -> Held:
        """At this moment. Without Linux's /proc no descriptors and no children are seen.

        What multiprocessing keeps from its first spawned child to the end of this process does not count.
        """
        kept: Any = resource_tracker._resource_tracker
        return cls(
            Counter(link for fd, link in _descriptors() if fd != kept._fd),
            frozenset(threading.enumerate()),
            Counter(_command(pid) for pid in _children() if pid != kept._pid),
        )

    def __add__(self, other: Held) -> Held:
        return Held(
            self.descriptors + other.descriptors,
            self.threads | other.threads,
            self.children + other.children,
        )

    def __sub__(self, other: Held) -> Held:
        return Held(
            self.descriptors - other.descriptors,
            self.threads - other.threads,
            self.children - other.children,
        )

    def __bool__(self) -> bool:
        return bool(self.descriptors or self.threads or self.children)

    def __str__(self) -> str:
        numbers = {link: fd for fd, link in _descriptors()}
        lines = [
            f"descriptor: {link}{_ends(numbers.get(link))}{f', {count} times' if count > 1 else ''}"
            for link, count in self.descriptors.items()
        ]
        lines += [f"thread: {thread.name}" for thread in self.threads]
        lines += [
            f"child: {command}{f', {count} times' if count > 1 else ''}"
            for command, count in self.children.items()
        ]
        return "".join(f"\n  {line}" for line in sorted(lines))


def left_since(before: Held, *, collect: bool = False) -> Held:
    """What is held that was not held *before*, after what goes by itself has gone.

    Args:
        before: what may be there.
        collect: whether garbage is collected meanwhile.
    """
    deadline = time.monotonic() + PATIENCE
    while (left := Held.now() - before) and time.monotonic() < deadline:
        if collect:
            gc.collect()  # each time: a thread may just have had what is garbage by now
        time.sleep(0.01)
    return left


def _descriptors() -> Iterator[tuple[int, str]]:
    if _FDS.is_dir():
        for entry in list(_FDS.iterdir()):
            with suppress(OSError):  # one that was there for this listing, or that another thread has closed
                yield int(entry.name), str(entry.readlink())


def _children() -> Iterator[int]:
    for thread in _TASKS.iterdir() if _TASKS.is_dir() else ():
        with suppress(OSError):
            yield from map(int, (thread / "children").read_text().split())


def _ends(fd: int | None) -> str:
    """Both ends of a connection, if it is one."""
    if fd is None:
        return ""
    with suppress(OSError), socket.socket(fileno=os.dup(fd)) as found:
        ours = f", at {found.getsockname()}"
        with suppress(OSError):
            return f"{ours} to {found.getpeername()}"
        return ours
    return ""


def _command(pid: int) -> str:
    with suppress(OSError):
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return line.partition(" [listener]")[0] or "(ended, not waited for)"  # sshd counts its sessions there
    return "(gone by now)"


@dataclass
class _Session:
    """What its fixtures hold, which may be made in the middle of a module."""

    held: Held = field(default_factory=Held)
    inside: bool = False  # a fixture of the session is being made, perhaps by another one
    item: pytest.Item | None = None  # the test that ends


_SESSION: pytest.StashKey[_Session] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    """Begin."""
    config.stash[_SESSION] = _Session()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """Note what a fixture of the session begins to hold."""
    session = request.config.stash[_SESSION]
    if fixturedef.scope != "session" or session.inside:
        return (yield)
    before, session.inside = Held.now(), True
    try:
        return (yield)
    finally:
        session.inside = False
        session.held += Held.now() - before


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Note which test ends, perhaps the last of its module."""
    item.config.stash[_SESSION].item = item


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail if the module leaves descriptors, threads or children behind."""
    session = request.config.stash[_SESSION]
    before, lasting, failed = Held.now(), session.held, request.session.testsfailed
    yield
    if request.session.testsfailed != failed:
        return  # its traceback keeps what a failed test held
    # pytest forgets what it gave to a test only after the module's own fixtures are done.
    if isinstance(session.item, pytest.Function):
        session.item.funcargs.clear()
    allowed = before + (session.held - lasting)
    if left := left_since(allowed, collect=True):
        pytest.fail(f"{request.node.name} has left behind:{left}", pytrace=False)
