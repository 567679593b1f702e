"""Command: one command of the server's shell, on a channel of its own."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import paramiko

OpenChannel = Callable[[], "paramiko.Channel"]

KEPT = 16 << 10  # bytes of the end of standard error
NOISE = 64 << 10  # bytes that start-up files may print before the command's own output
_PACKET = (
    32 << 10
) - 64  # what one send takes at most of OpenSSH's packets; paramiko keeps 64 bytes for itself
_GLANCE = 0.25  # seconds between looks at standard error and at the input, while nothing comes
_GLANCE_AT_INPUT = 0.005
_UNSAFE = re.compile(rb"[^A-Za-z0-9_@%+=:,./-]")


class CommandError(Exception):
    """A command failed.

    Attributes:
        status: its exit status; -1 where the server told none, as for a command that was killed.
        stderr: the end of what it said.
    """

    def __init__(self, status: int, stderr: bytes, reason: str = "") -> None:
        said = stderr.decode("utf-8", "backslashreplace").strip()
        super().__init__("; ".join(filter(None, [reason, f"status {status}", said])))
        self.status = status
        self.stderr = stderr


def quote(word: bytes) -> bytes:
    """*word* as a POSIX shell takes it for itself, whatever bytes but NUL it holds."""
    if word and not _UNSAFE.search(word):
        return word
    return b"'" + word.replace(b"'", b"'\"'\"'") + b"'"


class Command:
    """A command that runs on the server.

    Its input is sent while its output is read, so neither waits for the other; standard error is always taken off. Not for
    several threads at once.

    Args:
        open_channel: gives a new session channel; errors of it are let through, as are those of a lost connection.
        command: what the user's login shell is to run.
        io_timeout: seconds for each step: the start, each piece received or sent, the status.
        stdin: the whole input, taken as the command takes it; None for none, and no end of it before `finish`.
        marker: a line that the command prints first. What start-up files have printed before it is dropped.

    Attributes:
        io_timeout: as given.

    Raises:
        TimeoutError: from here as from each method: nothing moved for *io_timeout* seconds.
    """

    def __init__(
        self,
        open_channel: OpenChannel,
        command: bytes,
        io_timeout: float,
        *,
        stdin: Iterable[bytes] | None = (),
        marker: bytes = b"",
    ) -> None:
        self.io_timeout = io_timeout
        self._marker = marker
        self._input: Iterator[bytes] | None = None if stdin is None else iter(stdin)
        self._ends = stdin is not None  # whether the end of this input is that of all
        self._piece = b""
        self._position = 0
        self._input_open = True
        self.refused = False  # whether the command ended before it had read its input
        self._stderr = bytearray()
        self._kept = b""
        channel = self._channel = open_channel()
        # paramiko waits for the answer to this request without a limit; closing the channel ends that wait.
        watch = threading.Timer(io_timeout, channel.close)
        watch.daemon = True
        watch.start()
        try:
            channel.exec_command(command)
        except BaseException:
            timed_out = watch.finished.is_set()
            self.close()
            if timed_out:
                raise TimeoutError(f"the server did not start a command within {io_timeout:g} s") from None
            raise
        finally:
            watch.cancel()
        if self._input is not None:
            self._feed()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, pieces: Iterable[bytes]) -> None:
        """Have *pieces* taken as the command takes them, while its output is read; more may follow."""
        self._input = iter(pieces)
        self._feed()

    def read(self, size: int) -> bytes:
        """Up to *size* bytes of the output as they come; b"" at its end, which proves nothing before `finish`."""
        if self._marker:
            self._skip_noise()
        if self._kept:
            taken, self._kept = self._kept[:size], self._kept[size:]
            return taken
        return self._receive(size)

    def read_all(self, limit: int) -> bytes:
        """The rest of the output.

        Raises:
            CommandError: it has more than *limit* bytes.
        """
        pieces = []
        size = 0
        while piece := self.read(limit):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise CommandError(0, b"", f"the command printed more than {limit:,} bytes")
        return b"".join(pieces)

    def read_line(self, limit: int = 4096) -> bytes:
        """The next line, without its end.

        Raises:
            CommandError: there is none, or it is longer than *limit* bytes.
        """
        while b"\n" not in self._kept:
            piece = b"" if len(self._kept) > limit else self.read_more()
            if not piece:
                self.finish()
                raise CommandError(0, self.stderr, "the command did not print the line that was expected")
        line, _, self._kept = self._kept.partition(b"\n")
        return line

    def read_until(self, mark: bytes, limit: int) -> bytes:
        """The output before *mark*, which is dropped.

        Raises:
            CommandError: it does not come, or not within *limit* bytes.
        """
        while (at := self._kept.find(mark)) < 0:
            piece = b"" if len(self._kept) > limit else self.read_more()
            if not piece:
                self.finish()
                raise CommandError(0, self.stderr, "the command did not print what was expected")
        found, self._kept = self._kept[:at], self._kept[at + len(mark) :]
        return found

    def read_more(self) -> bytes:
        """Wait for more output, and keep it for the next reads; b"" at the end."""
        if self._marker:
            self._skip_noise()
            if self._kept:
                return self._kept
        piece = self._receive(_PACKET)
        self._kept += piece
        return piece

    def finish(self) -> None:
        """End the input, drop what is left of the output, and wait for the command to succeed.

        Raises:
            CommandError: its status is not 0, or it did not take all of its input.
            EOFError: the connection was lost.
        """
        try:
            status = self.status()
            if status == 0 and self.refused:
                raise CommandError(status, self.stderr, "the command ended before it had read its input")
            if status:
                raise CommandError(status, self.stderr)
        finally:
            self.close()

    def status(self) -> int:
        """End the input, drop what is left of the output, and wait for the exit status; -1 if the server tells none.

        Raises:
            EOFError: the connection was lost.
        """
        if self._input is None:
            self._end_input()
        while self._receive(1 << 20):
            pass
        if self._input is not None:
            self.refused = True
            self._input = None
            self._end_input()
        channel = self._channel
        deadline = time.monotonic() + self.io_timeout
        while not channel.status_event.wait(_GLANCE):
            if self._drain():
                deadline = time.monotonic() + self.io_timeout
            elif time.monotonic() > deadline:
                raise TimeoutError(
                    f"the server told no exit status within {self.io_timeout:g} s of the output's end"
                )
        self._drain()
        status: int = channel.exit_status
        if status == -1:
            self._check_connection()
        return status

    @property
    def ended(self) -> bool:
        """Whether the command is known to have ended, or its connection."""
        # Its status comes before the end of its output.
        return bool(self._channel.exit_status_ready() or self._channel.eof_received)

    @property
    def stderr(self) -> bytes:
        """The end of what the command has said so far on standard error."""
        return bytes(self._stderr)

    def close(self) -> None:
        """Give the command up, if it runs: its input ends, and it cannot write any more."""
        # A lost connection has closed it already.
        with suppress(Exception):
            self._channel.close()

    def _check_connection(self) -> None:
        transport = self._channel.get_transport()
        if transport is None or not transport.is_active():
            raise EOFError("the connection was lost while a command ran")

    def _skip_noise(self) -> None:
        line = b"\n" + self._marker + b"\n"
        found = b"\n" + self._kept
        self._kept = b""
        while (at := found.find(line)) < 0:
            # What was printed last may lack the end of its line.
            if (inside := found.find(line[1:])) >= 0:
                at = inside - 1
                break
            piece = self._receive(_PACKET)
            found += piece
            if not piece or len(found) > NOISE:
                if not piece:
                    self.finish()
                raise CommandError(0, self.stderr, "the server's shell does not do what it was told")
        self._kept = found[at + len(line) :]
        self._marker = b""

    def _receive(self, size: int) -> bytes:
        channel = self._channel
        deadline = 0.0
        while True:
            fed = self._input is not None and self._feed()
            channel.settimeout(min(_GLANCE if self._input is None else _GLANCE_AT_INPUT, self.io_timeout))
            try:
                piece: bytes = channel.recv(size)
            except TimeoutError:
                now = time.monotonic()
                if self._drain() or fed or not deadline:
                    deadline = now + self.io_timeout
                elif now > deadline:
                    self.close()
                    raise TimeoutError(f"nothing came from the server for {self.io_timeout:g} s") from None
                continue
            if channel.recv_stderr_ready():
                self._drain()
            return piece

    def _drain(self) -> bool:
        """Take standard error off; whether there was any."""
        found = False
        channel = self._channel
        while channel.recv_stderr_ready():
            piece = channel.recv_stderr(1 << 20)
            if not piece:
                break
            found = True
            self._stderr += piece
            del self._stderr[:-KEPT]
        return found

    def _feed(self) -> bool:
        """Send as much of the input as can be sent without waiting; whether that was any."""
        sent = False
        while self._input is not None:
            if self._position >= len(self._piece):
                piece = next(self._input, None)
                if piece is None:
                    self._input = None
                    if self._ends:
                        self._end_input()
                    return sent
                self._piece, self._position = piece, 0
                continue
            if not self._channel.send_ready() and not self._channel.closed:
                return sent
            self._send()
            sent = True
        return sent

    def _send(self) -> None:
        try:
            sent = self._channel.send(self._piece[self._position : self._position + _PACKET])
        except TimeoutError:
            raise
        except OSError:
            # "Socket is closed": the command has ended, or the connection; the status tells which.
            sent = 0
        if sent:
            self._position += sent
        else:
            self.refused = True
            self._input = None
            self._piece, self._position = b"", 0

    def _end_input(self) -> None:
        if self._input_open:
            self._input_open = False
            with suppress(OSError):
                self._channel.shutdown_write()
