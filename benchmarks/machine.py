"""Describes the machine, and measures how busy other processes keep it."""

from __future__ import annotations

import os
import platform
import re
import resource
import sqlite3
import subprocess
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from benchmarks.finding import find_program

DISTRIBUTIONS = (
    "storage-backend",
    "SQLAlchemy",
    "fsspec",
    "obstore",
    "opendal",
    "boto3",
    "paramiko",
    "asyncssh",
    "s3fs",
    "cloudpathlib",
    "smart_open",
    "multi-storage-client",
    "diskcache",
)


def describe(directory: Path) -> dict[str, str]:
    """Processor, memory, kernel, Python, and the file system of *directory*."""
    return {
        "processor": f"{os.cpu_count()} x {_processor()}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / (1 << 30):.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "files": _file_system(directory),
    }


def versions() -> dict[str, str]:
    """The versions of all libraries and programs that are installed."""
    found = {}
    for distribution in DISTRIBUTIONS:
        try:
            found[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    found["SQLite"] = sqlite3.sqlite_version
    for program, argument in (("rclone", "--version"), ("rsync", "--version"), ("s5cmd", "version")):
        if path := find_program(program):
            number = re.search(r"[0-9]+(\.[0-9]+)+", _first_line(path, argument))
            found[program] = number[0] if number else "unknown version"
    if commit := _first_line("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"):
        found["commit"] = commit
    return found


def package_commit() -> str:
    """The last commit that changed the package; "unknown" outside of a repository."""
    root = Path(__file__).parent.parent
    return (
        _first_line("git", "-C", str(root), "log", "-1", "--format=%h", "--", "storage_backend") or "unknown"
    )


def now() -> str:
    """The time of day, as the results show it."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


class Busy:
    """Measures how many processors other processes keep busy, from its construction on."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._all, self._own = _all_seconds(), _own_seconds()

    def others(self) -> float | None:
        """Processors, on average; None where the system does not tell."""
        now = _all_seconds()
        if now is None or self._all is None:
            return None
        used = now - self._all - (_own_seconds() - self._own)
        return round(max(used, 0.0) / max(time.monotonic() - self._started, 1e-9), 3)


def _all_seconds() -> float | None:
    """CPU seconds that all processes, and the hypervisor's other guests, have used since the start (proc_stat(5))."""
    try:
        first = Path("/proc/stat").read_text().split("\n", 1)[0]
    except FileNotFoundError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, first.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _file_system(directory: Path) -> str:
    """The type of the innermost mount above *directory*."""
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except FileNotFoundError:
        return "unknown"
    above = {line.split()[1]: line.split()[2] for line in lines}
    return next(above[str(path)] for path in (directory, *directory.parents) if str(path) in above)


def _first_line(*arguments: str) -> str:
    """The first line of a program's output; "" if it fails or is missing."""
    try:
        done = subprocess.run(arguments, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.split("\n", 1)[0].strip() if done.returncode == 0 else ""
