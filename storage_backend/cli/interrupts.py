"""Interrupts: lets Ctrl-C and SIGTERM end the program within seconds, whatever it waits for."""

from __future__ import annotations

import _thread
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from storage_backend.cli.exit_codes import Exit
from storage_backend.cli.output import print_error

LIMIT_SECONDS = (
    2.5  # from the first signal to the end; a transfer waits up to 2 seconds for running operations
)
FLUSH_SECONDS = 0.2  # to write the remaining output, whose reader may have stopped reading

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_END_OF_LIVE_LINE = b"\r\x1b[K\x1b[?25h"  # erased, and the cursor shown


class Interrupts:
    """Handles signals: the first raises KeyboardInterrupt and starts a deadline; the deadline or a second signal ends the process.

    Attributes:
        resume: appended to the message about the interrupt; says how to continue.
    """

    def __init__(self) -> None:
        self.resume = ""
        self._signal = signal.SIGINT  # the default: a KeyboardInterrupt that our handler did not raise
        self._received = False
        self._leaving = False
        self._reported = False

    @property
    def code(self) -> int:
        """The exit code: 128 plus the signal's number, as shells report it."""
        return Exit.INTERRUPTED if self._signal == signal.SIGINT else Exit.TERMINATED

    def watch(self) -> None:
        """Install the handlers, except for a signal that is ignored or has a handler."""
        defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        ours = [number for number, default in defaults.items() if signal.getsignal(number) is default]
        if not ours or threading.current_thread() is not threading.main_thread():
            return
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        # Python runs signal handlers in the main thread, which may be blocked in a client or a resolver. This thread is notified
        # at once.
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        _thread.start_new_thread(self._listen, (reading, frozenset(ours)))
        for number in ours:
            signal.signal(number, self._interrupt)

    def report(self) -> None:
        """Print once that the program was interrupted."""
        if not self._reported:
            self._reported = True
            print_error(self._line)

    def leave(self, code: int) -> NoReturn:
        """Exit. From now on a signal ends the process at once. After an earlier signal, do not wait for threads."""
        self._leaving = True
        if self._received:
            self._flush()
            os._exit(code)
        sys.exit(code)

    @property
    def _line(self) -> str:
        return _WORDS[self._signal] + self.resume

    def _interrupt(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a signal handler
        if self._leaving:
            os._exit(128 + number)
        if not self._received:
            self._received = True
            self._signal = signal.Signals(number)
            logger = logging.getLogger("storage_backend")
            if not logger.isEnabledFor(logging.DEBUG):
                logger.setLevel(
                    logging.CRITICAL
                )  # abandoned threads would log that they lost their connections
            raise KeyboardInterrupt

    def _listen(self, pipe: int, ours: frozenset[int]) -> None:
        """Count the signals, in a separate thread."""
        came = 0
        while True:
            for number in os.read(pipe, 16):
                if number in ours:
                    came += 1
                    if came == 1:
                        _thread.start_new_thread(self._end_in_time, (number,))
                    else:
                        self._end(number)

    def _end_in_time(self, number: int) -> None:
        threading.Event().wait(LIMIT_SECONDS)
        if not self._received:  # the main thread has not run the handler
            self._signal = signal.Signals(number)
        _within(FLUSH_SECONDS, self._flush)
        self._end(number)

    def _end(self, number: int) -> NoReturn:
        line = b"" if self._reported else f"storage-backend: {self._line}\n".encode()
        if os.isatty(2):
            line = _END_OF_LIVE_LINE + line
        with suppress(OSError):
            os.write(2, line)
        os._exit(self.code if self._received else 128 + number)

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()


def _within(seconds: float, call: Callable[[], object]) -> None:
    """Run *call* in a thread, and wait at most *seconds* for it."""
    done = threading.Event()

    def run() -> None:
        call()
        done.set()

    _thread.start_new_thread(run, ())
    done.wait(seconds)
