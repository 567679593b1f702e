"""Killed at any instant, a migration to S3 goes on where it was: nothing is lost, sent twice, or left behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage_backend import S3Storage
from storage_backend.backends.s3.settings import MIB
from storage_backend.testing.subject import same
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.s3_server_faults import Fault, reset, stall
from tests.s3_server_wire import Request
from tests.tiers import few

BUCKET = "bucket"
SEED = 20_261_121
LARGE = {f"{number}/large.bin": size * MIB + number for number, size in enumerate((20, 24, 28, 33, 40))}
SMALL = 300
KILLS = 18
MULTIPART = frozenset({"CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"})
PATIENCE = 120.0  # seconds for one run

# With small batches, so that the journal is written often.
MIGRATE = """
import sys
from storage_backend import LocalStorage, migrate
from storage_backend.backends.s3 import S3Storage

folder, url, bucket, access_key, secret_key = sys.argv[1:]
target = S3Storage(
    bucket, "some/where", endpoint_url=url, region="us-east-1", access_key=access_key, secret_key=secret_key,
    multipart_chunk_size=5 << 20, multipart_threshold=8 << 20,
)
report = migrate(LocalStorage(folder), target, batch_objects=20, workers=3)
assert report.ok, report.failed
"""

UPLOAD = """
import sys
from storage_backend.backends.s3 import S3Storage

path, url, bucket, access_key, secret_key = sys.argv[1:]
target = S3Storage(
    bucket, endpoint_url=url, region="us-east-1", access_key=access_key, secret_key=secret_key,
    multipart_chunk_size=5 << 20, multipart_threshold=8 << 20,
)
sys.stdin.read(1)
target.upload(path, "object")
"""


@pytest.fixture
def server() -> Iterator[S3Server]:
    with S3Server() as server:
        server.create_bucket(BUCKET)
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    chosen = random.Random(SEED)
    sizes = {**LARGE, **{f"{number % 6}/{number}.txt": number * 37 % 9001 for number in range(SMALL)}}
    for name, size in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chosen.randbytes(size))
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        f"some/where/{path.relative_to(folder)}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


class Run:
    """One run of a program, which a hook in the server may kill."""

    def __init__(self, program: str, path: Path, server: S3Server, state: Path) -> None:
        command = [sys.executable, "-c", program, str(path), server.url, BUCKET, ACCESS_KEY, SECRET_KEY]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XDG_STATE_HOME": str(state)},
        )

    def kill(self) -> None:
        """Once this returns, it does nothing more."""
        self.process.kill()
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)

    def ended(self) -> bool:
        """Whether it came to its end; False if it was killed."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode in {0, -signal.SIGKILL}, errors
        return self.process.returncode == 0


class Witness:
    """What the server had when a run was killed must not be sent to it again."""

    def __init__(self, server: S3Server) -> None:
        self._server = server
        self._there: set[tuple[str, int]] = set()
        self._seen = 0
        self.resumed = 0

    def look(self) -> None:
        """After a kill."""
        actions = self._server.actions[self._seen :]
        self._seen += len(actions)
        sent = {
            (record.query["uploadId"], int(record.query["partNumber"]))
            for record in actions
            if record.operation == "UploadPart"
        }
        assert not sent & self._there
        self.resumed += bool({upload for upload, _ in sent} & {upload for upload, _ in self._there})
        for upload_id, upload in self._server.uploads(BUCKET).items():
            self._there.update((upload_id, number) for number in list(upload.parts))


def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens by itself, in another thread."""
    waiting = threading.Event()
    for _ in range(12_000):
        if condition():
            return
        waiting.wait(0.005)
    raise AssertionError("it did not happen within a minute")


def settled(server: S3Server) -> None:
    """Return once the server has dealt with what a killed client had sent."""
    until(lambda: not server._open)


def check_end(server: S3Server, folder: Path, state: Path) -> None:
    assert same(server.objects(BUCKET), contents(folder))
    assert server.uploads(BUCKET) == {}
    before = len(server.actions)
    assert Run(MIGRATE, folder, server, state).ended()
    # The journal knows all: nothing is sent, nothing read back.
    assert {record.operation for record in server.actions[before:]} == {"ListObjectsV2"}


@pytest.mark.soak
def test_killed_at_random_instants_it_ends_exact(server: S3Server, folder: Path, tmp_path: Path) -> None:
    chosen = random.Random(SEED)
    witness = Witness(server)
    for number in range(KILLS):
        run = Run(MIGRATE, folder, server, tmp_path / "state")
        # Every other time within an upload, or most would fall among the small objects.
        operations, most = (MULTIPART, 8) if number % 2 else (None, 30)
        server.faults.choose = _killer(run, operations, chosen.randrange(1, most), lost=chosen.random() < 0.5)
        assert not run.ended()
        settled(server)
        witness.look()
    server.faults.clear()
    assert Run(MIGRATE, folder, server, tmp_path / "state").ended()
    witness.look()
    assert witness.resumed >= 3
    check_end(server, folder, tmp_path / "state")


def _killer(
    run: Run, operations: frozenset[str] | None, left: int, *, lost: bool
) -> Callable[[Request], Fault | None]:
    """Kill *run* when its request number *left* (of *operations*) comes; it is *lost*, or done if it is there already."""
    lock = threading.Lock()

    def hook(request: Request) -> Fault | None:
        nonlocal left
        if operations is not None and request.operation not in operations:
            return None
        with lock:
            left -= 1
            if left != 0:
                return None
        run.kill()
        return reset("head") if lost else None

    return hook


MOMENTS: dict[str, Callable[[Request, dict[str, int]], Any]] = {
    "create applied, its answer lost": lambda request, _: request.operation == "CreateMultipartUpload",
    "create answered": lambda request, seen: request.operation == "UploadPart" and seen["UploadPart"] == 1,
    "third part": lambda request, seen: request.operation == "UploadPart" and seen["UploadPart"] == 4,
    "complete not applied": lambda request, _: (
        reset("head") if request.operation == "CompleteMultipartUpload" else None
    ),
    "complete applied, its answer lost": lambda request, _: request.operation == "CompleteMultipartUpload",
    "complete answered": lambda request, seen: seen.get("CompleteMultipartUpload") and request.operation,
}


@pytest.mark.soak
@pytest.mark.parametrize("moment", few(MOMENTS, 1))
def test_killed_at_each_step_of_an_upload_it_goes_on(
    server: S3Server, folder: Path, tmp_path: Path, moment: str
) -> None:
    reached = MOMENTS[moment]
    run = Run(MIGRATE, folder, server, tmp_path / "state")
    seen: dict[str, int] = {}
    killed = threading.Event()
    lock = threading.Lock()

    def hook(request: Request) -> Fault | None:
        with lock:
            seen[request.operation] = seen.get(request.operation, 0) + 1
            found = reached(request, seen)
            if not found or killed.is_set():
                return None
            killed.set()
        run.kill()
        return found if isinstance(found, Fault) else None

    server.faults.choose = hook
    assert not run.ended()
    assert killed.is_set()
    server.faults.clear()
    settled(server)
    witness = Witness(server)
    witness.look()
    assert Run(MIGRATE, folder, server, tmp_path / "state").ended()
    witness.look()
    check_end(server, folder, tmp_path / "state")


def test_a_killed_upload_of_a_file_sends_only_the_parts_that_were_missing(
    server: S3Server, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(random.Random(SEED).randbytes(60 * MIB))
    run = Run(UPLOAD, path, server, tmp_path / "state")
    lock = threading.Lock()
    parts = 0

    def hook(request: Request) -> Fault | None:
        nonlocal parts
        with lock:
            parts += request.operation == "UploadPart"
            if parts != 7:
                return None
            parts += 1
        run.kill()
        return reset("head")

    server.faults.choose = hook
    assert not run.ended()
    server.faults.clear()
    settled(server)
    (upload,) = server.uploads(BUCKET).values()
    there = len(upload.parts)
    before = len(server.actions)
    assert Run(UPLOAD, path, server, tmp_path / "state").ended()
    sent = sum(record.operation == "UploadPart" for record in server.actions[before:])
    assert sent == 12 - there
    assert same(server.objects(BUCKET), {"object": path.read_bytes()})
    assert server.uploads(BUCKET) == {}


@pytest.mark.soak
def test_a_file_that_changed_since_the_kill_is_sent_as_it_is_now(server: S3Server, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(random.Random(1).randbytes(30 * MIB))
    run = Run(UPLOAD, path, server, tmp_path / "state")
    killed = threading.Event()

    def hook(request: Request) -> Fault | None:
        if request.operation == "CompleteMultipartUpload" and not killed.is_set():
            killed.set()
            run.kill()
            return reset("head")
        return None

    server.faults.choose = hook
    assert not run.ended()
    facts = path.stat()
    changed = random.Random(2).randbytes(30 * MIB)
    # Without a trace in size or time, so that only the parts' own digests can tell.
    path.write_bytes(path.read_bytes()[: 10 * MIB] + changed[10 * MIB :])
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert Run(UPLOAD, path, server, tmp_path / "state").ended()
    assert same(server.objects(BUCKET), {"object": path.read_bytes()})
    assert server.uploads(BUCKET) == {}


@pytest.mark.soak
def test_of_two_processes_that_upload_one_key_at_once_one_wins_whole(
    server: S3Server, tmp_path: Path
) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    for number, path in enumerate(files):
        path.write_bytes(random.Random(number).randbytes(30 * MIB + number))
    for _ in range(2):
        runs = [Run(UPLOAD, path, server, tmp_path / "state") for path in files]
        for run in runs:
            assert run.process.stdin is not None
            run.process.stdin.write("g")
            run.process.stdin.flush()
        assert all(run.ended() for run in runs)
        assert server.objects(BUCKET)["object"] in [path.read_bytes() for path in files]
        assert server.uploads(BUCKET) == {}
    assert sum(record.operation == "CompleteMultipartUpload" for record in server.actions) == 4


@pytest.mark.soak
def test_an_upload_of_somebody_else_is_left_alone(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(random.Random(SEED).randbytes(20 * MIB))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
    storage = S3Storage(
        BUCKET, endpoint_url=server.url, region="us-east-1", access_key=ACCESS_KEY, secret_key=SECRET_KEY
    )
    writer = storage.open("object", "wb")
    writer.write(b"other" * 5_000_000)
    until(lambda: any(upload.parts for upload in server.uploads(BUCKET).values()))
    # Killed while the answer to the beginning of its upload is on its way.
    server.faults.add(stall(3.0, "applied"), "CreateMultipartUpload")
    run = Run(UPLOAD, path, server, tmp_path / "state")
    assert run.process.stdin is not None
    run.process.stdin.write("g")
    run.process.stdin.flush()
    until(lambda: len(server.uploads(BUCKET)) == 2)
    run.kill()
    assert not run.ended()
    server.faults.clear()
    assert Run(UPLOAD, path, server, tmp_path / "state").ended()
    assert same(server.objects(BUCKET), {"object": path.read_bytes()})
    assert len(server.uploads(BUCKET)) == 1
    writer.close()
    assert same(server.objects(BUCKET), {"object": b"other" * 5_000_000})
    assert server.uploads(BUCKET) == {}
