"""Programs as contenders: our command line, and rclone."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.finding import find_program
from benchmarks.harness import Pass, Place, expect


def command(place: Place, *arguments: str, **variables: str) -> Pass:
    """A pass that runs a program from start to end. If it fails, the error has its output."""
    environment = {**os.environ, "XDG_STATE_HOME": str(place.scratch / "state"), **variables}

    def run() -> None:
        done = subprocess.run(arguments, check=False, capture_output=True, text=True, env=environment)
        expect(done.returncode == 0, f"{arguments[0]} exited with {done.returncode}: {done.stderr[-2000:]}")

    return run


def storage_backend(place: Place, *arguments: str) -> Pass:
    """`storage-backend` with these arguments."""
    return command(place, sys.executable, "-m", "storage_backend", *arguments)


def rclone(place: Place, *arguments: str, **variables: str) -> Pass:
    """`rclone` with these arguments and variables of its environment, its own defaults, and no configuration."""
    return command(place, find_program("rclone") or "rclone", "--config", "", *arguments, **variables)
