"""StandardStream: the standard streams, also if closed, non-blocking, on a full disk, or a pipe without a reader."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import select
import stat
import sys
from typing import BinaryIO, Protocol, TextIO

from typing_extensions import Buffer, override

from storage_backend.cli.exit_codes import Exit

BUFFER = 64 << 10  # bytes
_NAMES = ("standard input", "standard output", "standard error")


class OutputError(OSError):
    """Standard output cannot be written. It does not concern the objects that the program works on.

    Attributes:
        code: the exit code if this ends the program.
        unwanted: whether nobody reads the output: the stream is closed, or its reader or terminal is gone.
    """

    def __init__(self, number: int, error: OSError) -> None:
        super().__init__(f"cannot write to {_NAMES[number]}: {_reason(error)}")
        # Not through the constructor: OSError would choose a subclass by the errno.
        self.errno = error.errno
        closed_terminal = error.errno == errno.EIO and stat.S_ISCHR(os.fstat(number).st_mode)
        self.unwanted = closed_terminal or error.errno in {errno.EBADF, errno.EPIPE}
        full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        self.code = (
            Exit.BROKEN_PIPE if error.errno == errno.EPIPE else Exit.FATAL if full else Exit.SOME_FAILED
        )


def _reason(error: OSError) -> str | None:
    return "it is closed" if error.errno == errno.EBADF else error.strerror


class StandardStream(io.FileIO):
    """A standard stream that blocks even if another process made the shared pipe or terminal non-blocking.

    Args:
        number: 0, 1 or 2.

    Attributes:
        lossy: after a failed write, drop that and all later output instead of raising an error.
        lost: the error after which output was dropped.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number, "wb" if number else "rb", closefd=False)
        self.lossy = False
        self.lost: OutputError | None = None

    @override
    def write(self, data: Buffer, /) -> int:
        if self.lost is None:
            try:
                return self._patiently(super().write, data, select.POLLOUT)
            except OSError as error:
                failure = OutputError(self.fileno(), error)
                if not self.lossy:
                    raise failure from error
                self.lost = failure
        return memoryview(data).nbytes

    @override
    def readinto(self, buffer: Buffer, /) -> int:
        try:
            return self._patiently(super().readinto, buffer, select.POLLIN)
        except OSError as error:
            raise OSError(f"cannot read {_NAMES[self.fileno()]}: {_reason(error)}") from error

    def _patiently(self, call: _ReadOrWrite, data: Buffer, event: int) -> int:
        while (done := call(data)) is None:
            ready = select.poll()
            ready.register(self.fileno(), event)
            ready.poll()
        return done


class _ReadOrWrite(Protocol):
    def __call__(self, data: Buffer, /) -> int | None: ...


def wrap_standard_streams() -> None:
    """Put a `StandardStream` behind sys.stdin, sys.stdout and sys.stderr. Failed writes to stderr are dropped.

    A closed descriptor is opened first, in the wrong direction: otherwise the next file or connection would get its number, and with it
    our output. Reading or writing it still fails with EBADF.
    """
    for number, wrong_way in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(
                os.open(os.devnull, wrong_way), True
            )  # open(2) returns the lowest free number, which is this one
    sys.stdin = _text(io.BufferedReader(StandardStream(0), BUFFER), sys.stdin)
    sys.stdout = _text(io.BufferedWriter(StandardStream(1), BUFFER), sys.stdout)
    errors = StandardStream(2)
    errors.lossy = True
    sys.stderr = _text(io.BufferedWriter(errors, BUFFER), sys.stderr)
    sys.stderr.reconfigure(errors="backslashreplace", line_buffering=True)


def _text(stream: BinaryIO, old: TextIO | None) -> io.TextIOWrapper:
    """A text stream on *stream*, with the encoding that Python chose for *old*."""
    encoding, errors = ("utf-8", "surrogateescape") if old is None else (old.encoding, old.errors)
    return io.TextIOWrapper(stream, encoding, errors, line_buffering=stream.isatty())


def ignore_output_errors(*, if_closed: bool = False) -> None:
    """Let the command continue if standard output fails, because its result is not what it prints.

    Args:
        if_closed: only if standard output was closed from the start.
    """
    stream = _output()
    if stream is not None and not (if_closed and _is_writable(stream)):
        stream.lossy = True


def dropped_output() -> OutputError | None:
    """The error after which output was dropped; None if nobody reads the output."""
    stream = _output()
    return None if stream is None or stream.lost is None or stream.lost.unwanted else stream.lost


def _output() -> StandardStream | None:
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw if isinstance(raw, StandardStream) else None


def _is_writable(stream: StandardStream) -> bool:
    return fcntl.fcntl(stream.fileno(), fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
