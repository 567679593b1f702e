"""Finds the programs that a benchmark runs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def find_program(name: str) -> str | None:
    """The path of a program, on PATH or in the folder of this Python."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
