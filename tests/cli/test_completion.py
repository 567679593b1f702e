"""What click does for the program, under whichever click there is: help without arguments, and completion in three shells."""

from __future__ import annotations

import os
import pty
import select
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Program
from tests.servers import program as installed


@pytest.mark.parametrize("command", ["", "migrate", "ls", "cp", "cache", "cache stats"])
def test_without_arguments_it_shows_its_help_and_refuses(program: Program, command: str) -> None:
    result = program(*command.split())
    assert result.code == 2
    assert not result.out
    lines = result.err.splitlines()
    assert lines[0].startswith(f"Usage: storage-backend {command}".rstrip() + " ")
    assert "Options:" in lines
    assert result.err.rstrip("\n") == program(*command.split(), "--help").out.decode().rstrip("\n")


def test_the_process_does_the_same(process: Program) -> None:
    result = process("cp")
    assert (result.code, result.out) == (2, b"")
    assert result.err.startswith("Usage: storage-backend cp [OPTIONS] SOURCE TARGET\n\n")
    assert "\\n" not in result.err
    assert process("--version").code == 0
    assert process("cp", "-h").code == 0
    assert process("nonsense").code == 2


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH on which the program is found by its name."""
    program = tmp_path / "bin" / "storage-backend"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m storage_backend "$@"\n')
    program.chmod(0o755)
    return f"{program.parent}{os.pathsep}{os.environ['PATH']}"


SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
}
SETUPS = {
    "bash": 'eval "$(_STORAGE_BACKEND_COMPLETE=bash_source storage-backend)"; bind "set enable-bracketed-paste off"',
    "zsh": "autoload -U compinit; compinit -u -D; unsetopt zle_bracketed_paste; "
    'eval "$(_STORAGE_BACKEND_COMPLETE=zsh_source storage-backend)"',
}


class Terminal:
    """A shell on a terminal."""

    def __init__(self, command: list[str], directory: Path, path: str) -> None:
        self._leader, follower = pty.openpty()
        self._shell = subprocess.Popen(
            command,
            stdin=follower,
            stdout=follower,
            stderr=follower,
            cwd=directory,
            start_new_session=True,
            env={**os.environ, "PATH": path, "PS1": "ready> ", "TERM": "dumb", "HOME": str(directory)},
        )
        os.close(follower)
        self._poll = select.poll()
        self._poll.register(self._leader, select.POLLIN)
        self.shown = ""

    def type(self, keys: str, until: str) -> None:
        """Type, and wait until the terminal shows something anew."""
        before = len(self.shown)
        os.write(self._leader, keys.encode())
        deadline = time.monotonic() + 60
        while until not in self.shown[before:]:
            assert time.monotonic() < deadline, self.shown
            if self._poll.poll(100):
                self.shown += os.read(self._leader, 65536).decode()

    def close(self) -> None:
        """Hang up."""
        self._shell.kill()
        self._shell.wait()
        os.close(self._leader)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_commands_options_and_files(shell: str, path: str, tmp_path: Path) -> None:
    installed(shell, f"apt-get install {shell}")
    (tmp_path / "unmistakable").touch()
    terminal = Terminal(SHELLS[shell], tmp_path, path)
    try:
        terminal.type(f"{SETUPS[shell]}; echo do''ne\n", until="done")
        terminal.type("storage-backend migr\t", until="migrate ")
        terminal.type("--delete-s\t", until="--delete-source ")
        terminal.type("./unmis\t", until="unmistakable")
    finally:
        terminal.close()


def test_fish_completes_commands_options_and_files(path: str, tmp_path: Path) -> None:
    installed("fish", "apt-get install fish")
    (tmp_path / "unmistakable").touch()
    script = """
    _STORAGE_BACKEND_COMPLETE=fish_source storage-backend | source
    complete -C 'storage-backend migr'
    complete -C 'storage-backend migrate --delete-s'
    complete -C 'storage-backend migrate ./unmis'
    """
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "HOME": str(tmp_path)},
    )
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [
        "migrate",
        "--delete-source",
        "./unmistakable",
    ]
