"""ProxyCommandSocket: a connection through a program, as ProxyCommand in ssh_config(5)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import threading
from contextlib import suppress

PATIENCE = 2.0  # seconds to wait for the program after each signal


class ProxyCommandSocket:
    """A running ProxyCommand with a real socket.

    Replaces paramiko.ProxyCommand, whose `recv` loops forever once the program has ended.

    Args:
        command: run by the user's shell with `exec`, as OpenSSH does.

    Attributes:
        sock: our end of the connection.

    Raises:
        OSError: the shell cannot be started.
    """

    def __init__(self, command: str) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self.sock, theirs = socket.socketpair()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        try:
            with theirs:
                # In its own session, so that Ctrl-C does not end the program.
                self._process = subprocess.Popen(  # noqa: S603 - the user's own configuration
                    [os.environ.get("SHELL") or "/bin/sh", "-c", f"exec {command}"],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=self._errors,
                    start_new_session=True,
                )
        except BaseException:
            self.sock.close()
            self._errors.close()
            raise

    def complaint(self) -> str:
        """The last line of the program's standard error, or ""."""
        with self._lock:
            if self._closed:
                return ""
            size = os.fstat(self._errors.fileno()).st_size
            lines = (
                os.pread(self._errors.fileno(), 4096, max(0, size - 4096))
                .decode("utf-8", "replace")
                .split("\n")
            )
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def close(self) -> None:
        """End the connection and the program. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE)
                break
        self._errors.close()
