"""Command: runs one command in the server's shell, on its own channel."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from storage_backend.backends.remote.library import limited

if TYPE_CHECKING:
    import paramiko

OpenChannel = Callable[[], "paramiko.Channel"]

MAX_STDERR = 16 << 10  # bytes kept of the end of standard error
MAX_NOISE = 64 << 10  # bytes that start-up files may print before the command's output
# bytes; OpenSSH's packets hold 32 KiB, of which paramiko reserves 64 bytes
_PACKET = (32 << 10) - 64
_POLL = 0.25  # seconds between checks of standard error while there is no output
_POLL_WITH_INPUT = 0.005  # the same, while there is input to send
_UNSAFE = re.compile(rb"[^A-Za-z0-9_@%+=:,./-]")


class CommandError(Exception):
    """A command failed.

    Attributes:
        status: its exit status; -1 if the server sent none, as for a killed command.
        stderr: the end of its standard error.
    """

    def __init__(self, status: int, stderr: bytes, reason: str = "") -> None:
        said = stderr.decode("utf-8", "backslashreplace").strip()
        super().__init__("; ".join(filter(None, [reason, f"status {status}", said])))
        self.status = status
        self.stderr = stderr


def quote(word: bytes) -> bytes:
    """*word* quoted for a POSIX shell; any bytes but NUL."""
    if word and not _UNSAFE.search(word):
        return word
    return b"'" + word.replace(b"'", b"'\"'\"'") + b"'"


class Command:
    """A command that runs on the server.

    Sends input while it reads output and always drains standard error, so that neither side blocks the other. Not thread-safe.

    Args:
        open_channel: opens a session channel; its errors are not translated, nor those of a lost connection.
        command: for the user's login shell.
        io_timeout: seconds for each step: the start, each piece received or sent, the exit status.
        stdin: the whole input, consumed as the command reads it; None to `send` it later.
        marker: a line that the command prints first; output of start-up files before it is dropped.

    Raises:
        TimeoutError: also from each method: nothing was received or sent for *io_timeout* seconds.
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
        self._ends = stdin is not None  # whether this is all the input
        self._piece = b""
        self._position = 0
        self._input_open = True
        self.refused = False  # whether the command ended before it read all its input
        self._stderr = bytearray()
        self._kept = b""
        channel = self._channel = open_channel()
        with limited(io_timeout, channel.close) as timer:
            try:
                channel.exec_command(command)
            except BaseException:
                self.close()
                if timer.finished.is_set():
                    raise TimeoutError(
                        f"the server did not start a command within {io_timeout:g} s"
                    ) from None
                raise
        if self._input is not None:
            self._feed()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, pieces: Iterable[bytes]) -> None:
        """Send *pieces* while output is read; more may follow."""
        self._input = iter(pieces)
        self._feed()

    def read(self, size: int) -> bytes:
        """Up to *size* bytes of output as they arrive; b"" at the end. Call `finish` to check for success."""
        if self._marker:
            self._skip_noise()
        if self._kept:
            taken, self._kept = self._kept[:size], self._kept[size:]
            return taken
        return self._receive(size)

    def read_all(self, limit: int) -> bytes:
        """The rest of the output.

        Raises:
            CommandError: there are more than *limit* bytes.
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
        """The next line, without its newline. Raises as `read_until`."""
        return self.read_until(b"\n", limit)

    def read_until(self, mark: bytes, limit: int) -> bytes:
        """The output before *mark*, which is dropped.

        Raises:
            CommandError: *mark* is not found within *limit* bytes.
        """
        while (at := self._kept.find(mark)) < 0:
            piece = b"" if len(self._kept) > limit else self.read_more()
            if not piece:
                self.finish()
                raise CommandError(0, self.stderr, "the command's output lacks the expected mark")
        found, self._kept = self._kept[:at], self._kept[at + len(mark) :]
        return found

    def read_more(self) -> bytes:
        """Wait for more output and buffer it for later reads; b"" at the end."""
        if self._marker:
            self._skip_noise()
            if self._kept:
                return self._kept
        piece = self._receive(_PACKET)
        self._kept += piece
        return piece

    def finish(self) -> None:
        """End the input, drop the rest of the output, and wait for the command to succeed.

        Raises:
            CommandError: its status is not 0, or it did not read all its input.
            EOFError: the connection was lost.
        """
        try:
            status = self.status()
            if status == 0 and self.refused:
                raise CommandError(status, self.stderr, "the command ended before it read all its input")
            if status:
                raise CommandError(status, self.stderr)
        finally:
            self.close()

    def status(self) -> int:
        """End the input, drop the rest of the output, and wait for the exit status; -1 if the server sends none.

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
        while not channel.status_event.wait(_POLL):
            if self._drain():
                deadline = time.monotonic() + self.io_timeout
            elif time.monotonic() > deadline:
                raise TimeoutError(
                    f"the server sent no exit status within {self.io_timeout:g} s of the output's end"
                )
        self._drain()
        status: int = channel.exit_status
        if status == -1:
            transport = channel.get_transport()
            if transport is None or not transport.is_active():
                raise EOFError("the connection was lost while a command ran")
        return status

    @property
    def ended(self) -> bool:
        """Whether the command or its connection is known to have ended."""
        # sshd sends the status before the end of output.
        return bool(self._channel.exit_status_ready() or self._channel.eof_received)

    @property
    def stderr(self) -> bytes:
        """The last bytes of standard error so far."""
        return bytes(self._stderr)

    def close(self) -> None:
        """Close the channel; a running command gets end of input and can no longer write."""
        # A lost connection has closed it.
        with suppress(Exception):
            self._channel.close()

    def _skip_noise(self) -> None:
        line = b"\n" + self._marker + b"\n"
        found = b"\n" + self._kept
        self._kept = b""
        while (at := found.find(line)) < 0:
            # The output of start-up files may lack a final newline.
            if (inside := found.find(line[1:])) >= 0:
                at = inside - 1
                break
            piece = self._receive(_PACKET)
            found += piece
            if not piece or len(found) > MAX_NOISE:
                if not piece:
                    self.finish()
                raise CommandError(0, self.stderr, "the server's shell did not run the command")
        self._kept = found[at + len(line) :]
        self._marker = b""

    def _receive(self, size: int) -> bytes:
        channel = self._channel
        deadline = 0.0
        while True:
            fed = self._input is not None and self._feed()
            channel.settimeout(min(_POLL if self._input is None else _POLL_WITH_INPUT, self.io_timeout))
            try:
                piece: bytes = channel.recv(size)
            except TimeoutError:
                now = time.monotonic()
                if self._drain() or fed or not deadline:
                    deadline = now + self.io_timeout
                elif now > deadline:
                    self.close()
                    raise TimeoutError(f"the server sent nothing for {self.io_timeout:g} s") from None
                continue
            if channel.recv_stderr_ready():
                self._drain()
            return piece

    def _drain(self) -> bool:
        """Read the available standard error; returns whether there was any."""
        found = False
        channel = self._channel
        while channel.recv_stderr_ready():
            piece = channel.recv_stderr(1 << 20)
            if not piece:
                break
            found = True
            self._stderr += piece
            del self._stderr[:-MAX_STDERR]
        return found

    def _feed(self) -> bool:
        """Send as much input as possible without waiting; returns whether any was sent."""
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
            # "Socket is closed": the command or connection has ended; the exit status tells which.
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
