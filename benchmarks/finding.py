"""Where the programs are that a benchmark runs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def find_program(name: str) -> str | None:
    """The path of a program, also if it is beside a Python whose environment is not activated."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
