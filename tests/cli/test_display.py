"""What stands on a terminal while the program works: real programs, on pseudo-terminals, with slow servers."""

from __future__ import annotations

import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.cli.terminal import Run
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

MIB = 1 << 20
RATE = 3 * MIB  # bytes a second through the relay
CONTENT = os.urandom(6 * MIB)


class Relay(threading.Thread):
    """Passes connections on to a server; its answers at no more than RATE."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def run(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with (
            client,
            socket.create_connection(("127.0.0.1", self._server)) as server,
            selectors.DefaultSelector() as ready,
            suppress(OSError),
        ):
            ready.register(client, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in ready.select():
                    sender, receiver = (client, server) if key.data is server else (server, client)
                    chunk = sender.recv(64 << 10)
                    if not chunk:
                        return
                    if sender is server:
                        time.sleep(len(chunk) / RATE)  # the link is slow
                    receiver.sendall(chunk)

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def plain(environment: dict[str, str]) -> dict[str, str]:
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TERM"):
        environment.pop(name, None)
    return environment


@pytest.fixture
def slow(plain: dict[str, str]) -> Iterator[dict[str, str]]:
    """The environment for a slow s3://bucket with one large object and a small one."""
    with S3Server() as server:
        server.create_bucket("bucket")
        server.put("bucket", "large", CONTENT)
        server.put("bucket", "small", b"x")
        relay = Relay(int(server.url.rpartition(":")[2]))
        relay.start()
        yield {
            **plain,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": relay.url,
            "AWS_CONFIG_FILE": "/dev/null",
        }
        relay.stop()


def moved(text: str) -> list[float]:
    """What was shown of the bytes."""
    return [float(found) for found in re.findall(r"([\d.]+)/6.0 MiB", text)]


def test_bytes_move_inside_a_large_object_at_any_width(
    slow: dict[str, str], tmp_path: Path, soak: bool
) -> None:
    same = tmp_path / "same"
    same.mkdir()
    (same / "large").write_bytes(CONTENT)
    (same / "small").write_bytes(b"x")
    runs = {
        width: Run("sync", "s3://bucket", tmp_path / str(width), environment=slow, width=width)
        for width in ((40, 80, 200) if soak else (40,))
    }
    runs[41] = Run("get", "s3://bucket/large", tmp_path / "got", environment=slow, width=41)
    runs[42] = Run(
        "checksum",
        "s3://bucket/large",
        environment={**slow, "NO_COLOR": "1"},
        width=42,
        stdout=tmp_path / "sum",
    )
    runs[43] = Run("cat", "s3://bucket/large", environment=slow, width=43, stdout=tmp_path / "file")
    runs[44] = Run("verify", "s3://bucket", same, environment=slow, width=44)
    for width, run in runs.items():
        assert run.end() == 0, run.text
        shown = moved(run.text)
        assert shown == sorted(shown)
        assert len(set(shown) - {0.0, 6.0}) >= 3, run.text
        assert len(re.findall(r"\d+%", run.text)) >= 3
        assert re.search(r"ETA [\dm]+s", run.text)
        assert re.search(r"[\d.]+ [KM]iB/s", run.text)
        screen = run.screen
        assert all(line.startswith(("sync: copied 2 ", "verify: compared 2 ")) for line in screen.too_wide)
        assert screen.cursor_shown
        assert "━" in run.text
        assert bool(screen.colours) is (width != 42)
        # Of the display nothing is left.
        assert len(screen.lines) == (width in {40, 44, 80, 200})
        assert all(line.startswith(("sync: ", "verify: ")) for line in screen.lines)
    assert (tmp_path / "file").read_bytes() == (tmp_path / "got").read_bytes() == CONTENT


def test_no_codes_where_no_terminal_is(slow: dict[str, str], tmp_path: Path) -> None:
    with ExitStack() as stack:
        piped = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "storage_backend", "sync", "s3://bucket", tmp_path / "piped"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={"TERM": "xterm", **slow},
            )
        )
        dumb = Run("sync", "s3://bucket", tmp_path / "dumb", environment={**slow, "TERM": "dumb"})
        out, err = piped.communicate(timeout=60)
        assert dumb.end() == 0
        assert (piped.returncode, err) == (0, b"")
        assert out.startswith(b"sync: copied 2 ")
        assert out.count(b"\n") == dumb.text.count("\n") == 1
        assert dumb.text.startswith("sync: copied 2 ")
        assert "\x1b" not in dumb.text


def test_a_silent_host_is_named_and_an_interrupt_leaves_the_terminal_in_order(
    slow: dict[str, str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        location = f"s3://bucket?endpoint_url=http://127.0.0.1:{silent.getsockname()[1]}"
        runs = [
            Run("sync", location, tmp_path / "a", environment=slow, width=40),
            Run("get", location.replace("?", "/x?"), tmp_path / "b", environment=slow),
        ]
        for run in runs:
            run.wait_for(r"waiting for 127\.0\.0\.1, \d+ s")
            assert "0/0 objects" in run.text or "0 B" in run.text
            run.process.send_signal(signal.SIGINT)
    for run in runs:
        with suppress(subprocess.TimeoutExpired):
            run.process.wait(5)
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 130
        screen = run.screen
        assert screen.cursor_shown
        assert screen.lines
        assert all(line.startswith("storage-backend: ") for line in [*screen.lines, *screen.too_wide])


@pytest.mark.soak
def test_standard_input_is_shown_as_it_comes(plain: dict[str, str], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    run = Run("put", "-", tmp_path / "out" / "x", environment=plain, stdin=reader)
    os.close(reader)
    os.write(writer, b"x" * 10_240)
    run.wait_for("10.0 KiB")
    os.write(writer, b"x" * 10_240)
    run.wait_for("20.0 KiB")
    run.wait_for(r"waiting for standard input, \d+ s")
    os.close(writer)
    assert run.end() == 0
    assert run.screen.lines == []
    assert (tmp_path / "out" / "x").stat().st_size == 20_480
