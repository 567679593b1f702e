"""Python's own library folder, or a package of it, through SQLite and PostgreSQL and back: nothing is lost, and memory stays bounded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
SMALL = LIBRARY / "encodings"  # some 250 files
MOST_MEMORY = 150 << 20  # bytes; the target of the migration table


class Ended:
    """What a run of the command line came to."""

    def __init__(self, code: int, output: str, errors: str, memory: int) -> None:
        self.code = code
        self.errors = errors
        self.memory = memory
        self.events: list[dict[str, Any]] = [json.loads(line) for line in output.splitlines()]

    @property
    def report(self) -> dict[str, Any]:
        assert self.events, self.errors
        assert self.events[-1]["event"] == "end"
        return self.events[-1]


# VmHWM (proc_pid_status(5)), since ru_maxrss counts the memory of this process too, from before the exec.
PROGRAM = """
import pathlib, re, sys
from storage_backend.cli import run
code = int(run(sys.argv[2:]))
pathlib.Path(sys.argv[1]).write_text(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
sys.exit(code)
"""


def run(directory: Path, *arguments: str | Path) -> Ended:
    environment = {
        **os.environ,
        "XDG_STATE_HOME": str(directory / "state"),
        "PYTHONDONTWRITEBYTECODE": "1",  # the library is what is migrated
    }
    peak = directory / "peak"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, peak, *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr, int(peak.read_text()) << 10)


@pytest.fixture
def library(tmp_path: Path, soak: bool) -> Path:
    """Thousands of files of all kinds with --soak; a copy, since other programs may compile modules of the library meanwhile."""
    if not soak:
        return SMALL
    # What others have installed may be of any size.
    skipped = shutil.ignore_patterns("site-packages")
    return Path(shutil.copytree(LIBRARY, tmp_path / "library", symlinks=True, ignore=skipped))


def migrated(directory: Path, source: str | Path, target: str | Path) -> dict[str, Any]:
    done = run(directory, "migrate", source, target)
    assert done.code == 0, done.errors
    assert done.memory < MOST_MEMORY
    report = done.report
    assert report["failed"] == {}
    assert report["copied"] == report["verified"] == report["planned"]
    return report


@pytest.mark.soak
def test_the_library_survives_two_databases_and_back(
    tmp_path: Path, postgresql_url: str, library: Path
) -> None:
    sqlite, back = f"sqlite:///{tmp_path}/archive.db", tmp_path / "back"
    first = migrated(tmp_path, library, sqlite)
    assert first["copied"] > 100
    assert migrated(tmp_path, sqlite, postgresql_url)["copied"] == first["copied"]
    assert migrated(tmp_path, postgresql_url, back)["bytes"] == first["bytes"]
    again = run(tmp_path, "migrate", library, sqlite)
    assert again.code == 0
    assert again.report["copied"] == 0
    assert again.report["skipped"] == {"journal": first["copied"]}
    difference = subprocess.run(["diff", "-r", library, back], capture_output=True, text=True, check=False)
    assert (difference.returncode, difference.stdout) == (0, "")
    checked = run(tmp_path, "verify", library, back)
    assert checked.code == 0
    assert checked.report["compared"] == first["copied"]
