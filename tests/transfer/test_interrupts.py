"""KeyboardInterrupt comes out of a transfer soon, whatever it waits for, and nothing keeps the process alive."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# At the moment that the test names, a backend interrupts the program as Ctrl-C would, and is silent from then on.
PROGRAM = """
import os, signal, sys, threading, time
from storage_backend import Capability, MemoryStorage, RetryingStorage, UnavailableError, migrate, sync
from storage_backend.transfer.journal import Journal

moment, journal = sys.argv[1:]
events, late, once = [], threading.Event(), threading.Lock()

def silence():
    if once.acquire(blocking=False):
        os.kill(os.getpid(), signal.SIGINT)
    late.wait()

class Source(MemoryStorage):
    location = "test://source"
    def scan(self, prefix="", *, on_skip=None):
        for number, info in enumerate(super().scan(prefix)):
            if moment == "planning" and number == 2:
                silence()
            yield info
    def read_many(self, identifiers):
        if moment == "reading":
            silence()
        return super().read_many(identifiers)
    def delete_many(self, identifiers):
        if moment == "source deletion":
            silence()
        return super().delete_many(identifiers)

class Target(MemoryStorage):
    location = "test://target"
    capabilities = MemoryStorage.capabilities.fget(MemoryStorage()) | Capability.FLUSH
    tries = 0
    def write_many(self, items, *, verify=False):
        self.tries += 1
        if moment == "backoff" or (moment == "retry" and self.tries == 1):
            raise UnavailableError("busy")
        if moment == "late":
            count = super().write_many(items, verify=verify)
            silence()
            return count
        return super().write_many(items, verify=verify)
    def write_stream(self, identifier, reader, *, info=None, verify=False):
        if moment == "retry":
            silence()
        return super().write_stream(identifier, reader, info=info, verify=verify)
    def delete_many(self, identifiers):
        if moment == "deletion":
            silence()
        return super().delete_many(identifiers)
    def flush(self):
        if moment == "flush":
            silence()
        return True

source, target = Source(), Target()
for number in range(5):
    source.write(str(number), b"content")
target.write("extra", b"extra")
if moment == "backoff":
    def sleep(seconds):
        silence()
    target = RetryingStorage(target, sleep=sleep)
began = time.monotonic()
try:
    if moment == "deletion":
        sync(source, target, delete=True, on_event=events.append)
    else:
        migrate(
            source, target, journal=journal, on_event=events.append,
            delete_source=moment in {"source deletion", "flush"}, flush=moment == "flush",
        )
except KeyboardInterrupt:
    pass
else:
    sys.exit("not interrupted")
seconds = time.monotonic() - began
assert seconds < 10, seconds
assert events[-1].kind == "end", events[-1]
told = len(events)
with Journal(journal, source.location, target.location) as again:  # nobody holds it
    known = [record.identifier for record in again.records()]
late.set()
while any(thread.name.startswith("storage-") for thread in threading.enumerate()):
    time.sleep(0.01)
with Journal(journal, source.location, target.location) as again:
    assert [record.identifier for record in again.records()] == known
assert len(events) == told
if moment == "late":
    assert all(target.read(str(number)) == b"content" for number in range(5))
"""

# The threads that are left behind must not be joined when the interpreter ends.
EXIT = """
import os, signal, sys, threading
from storage_backend import MemoryStorage, sync

class Silent(MemoryStorage):
    def read_many(self, identifiers):
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait()

source = Silent()
source.write("a", b"1")
source.write("b", b"2")
sync(source, MemoryStorage())
"""

MOMENTS = [
    "planning",
    "reading",
    "late",
    "retry",
    "backoff",
    "deletion",
    "source deletion",
    "flush",
]


def test_interrupt_at_any_moment(tmp_path: Path) -> None:
    programs = {
        moment: subprocess.Popen(
            [sys.executable, "-c", PROGRAM, moment, tmp_path / f"{moment}.db"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for moment in MOMENTS
    }
    try:
        ends = {moment: program.communicate(timeout=60) for moment, program in programs.items()}
    finally:
        for program in programs.values():
            program.kill()
            program.wait()
    for moment, program in programs.items():
        assert program.returncode == 0, (moment, ends[moment])


def test_the_interpreter_ends() -> None:
    done = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, timeout=60, check=False)
    assert done.stderr.rstrip().endswith(b"KeyboardInterrupt")
