"""A program on a pseudo-terminal, and what stands on its screen."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

HEIGHT = 24
TOKEN = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+|\x1b")


class Screen:
    """What a terminal shows after some output. It knows what the program uses, and refuses the rest."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.rows = [""]
        self.cursor_shown = True
        self.colours: set[str] = set()
        self.too_wide: list[str] = []
        self._row = self._column = 0

    def feed(self, text: str) -> Self:
        for match in TOKEN.finditer(text):
            token = match[0]
            if token == "\r":
                self._column = 0
            elif token == "\n":
                self._row += 1
                self.rows += [""] * (self._row >= len(self.rows))
            elif match[2] is not None:
                self._control(match[1], match[2])
            else:
                assert token != "\x1b", text
                row = self.rows[self._row].ljust(self._column)
                self.rows[self._row] = row[: self._column] + token + row[self._column + len(token) :]
                self._column += len(token)
                if self._column > self.width:
                    self.too_wide.append(self.rows[self._row])
        return self

    def _control(self, parameters: str, letter: str) -> None:
        if letter == "A":
            self._row = max(0, self._row - int(parameters or 1))
        elif letter == "K":
            row = self.rows[self._row]
            self.rows[self._row] = "" if parameters == "2" else row[: self._column]
        elif letter == "m":
            self.colours |= {code for code in parameters.split(";") if code not in {"", "0", "1", "2"}}
        elif parameters == "?25":
            self.cursor_shown = letter == "h"
        else:
            raise AssertionError(f"unexpected control: {parameters}{letter}")

    @property
    def lines(self) -> list[str]:
        return [row.rstrip() for row in self.rows if row.strip()]


class Run:
    """The program with a terminal of *width* columns for its three standard streams, or for some of them.

    Args:
        arguments: of the program.
        environment: of it.
        width: of the terminal.
        stdin: a descriptor instead of the terminal.
        stdout: a file instead of the terminal.
    """

    def __init__(
        self,
        *arguments: str | Path,
        environment: Mapping[str, str],
        width: int = 80,
        stdin: int | None = None,
        stdout: Path | None = None,
    ) -> None:
        self.width = width
        self._leader, follower = os.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, width, 0, 0))
        mode = termios.tcgetattr(follower)
        mode[3] &= ~termios.ECHO
        termios.tcsetattr(follower, termios.TCSANOW, mode)
        output = stdout.open("wb") if stdout is not None else None
        self.process = subprocess.Popen(
            [sys.executable, "-m", "storage_backend", *arguments],
            stdin=follower if stdin is None else stdin,
            stdout=follower if output is None else output,
            stderr=follower,
            env={"TERM": "xterm-256color", **environment},
        )
        os.close(follower)
        if output is not None:
            output.close()
        self._changed = threading.Condition()
        self._text = ""
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        data = b""
        while True:
            try:
                chunk = os.read(self._leader, 1 << 16)
            except OSError:  # EIO: nobody has the other end any more
                chunk = b""
            data += chunk
            with self._changed:
                self._text = data.decode("utf-8", "ignore")
                self._ended = not chunk
                self._changed.notify_all()
            if not chunk:
                os.close(self._leader)
                return

    @property
    def text(self) -> str:
        """All that was written to the terminal so far."""
        with self._changed:
            return self._text

    def wait_for(self, pattern: str) -> None:
        """Wait until something that matches was written."""
        with self._changed:
            found = self._changed.wait_for(lambda: self._ended or re.search(pattern, self._text), 60)
            assert found, self._text
            assert re.search(pattern, self._text), self._text

    def end(self) -> int:
        """Wait for the end; the exit code."""
        code = self.process.wait(60)
        self._thread.join(60)
        return code

    @property
    def screen(self) -> Screen:
        """The screen as it is now."""
        return Screen(self.width).feed(self.text)
