"""The program, run in this process and as a real one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest


class Result(NamedTuple):
    """How a run of the program ended."""

    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        """Standard output."""
        return self.out.decode("utf-8", "surrogateescape").splitlines()


Program: TypeAlias = Callable[..., Result]


@pytest.fixture
def program(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Program:
    """Runs the program's `run` in this process: fast, for the many."""
    from storage_backend.cli import run

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def call(*arguments: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsysbinary.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        return Result(int(code), out, err.decode())

    return call


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "PYTHONWARNINGS": "error"}


@pytest.fixture
def process(environment: dict[str, str]) -> Program:
    """Runs the real program."""

    def call(*arguments: str | Path | bytes, stdin: bytes = b"", **options: Any) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "storage_backend", *arguments],
            check=False,
            input=stdin,
            capture_output=True,
            env=environment,
            timeout=60,
            **options,
        )
        return Result(done.returncode, done.stdout, done.stderr.decode())

    return call
