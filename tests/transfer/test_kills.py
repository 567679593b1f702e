"""Migrations that remove their source, killed at any instant together with the servers: each object is whole on one side."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage_backend import NotFoundError, StorageBackend, open_storage
from tests.backends.sql_samples import rows
from tests.conftest import unavailable
from tests.s3_servers import RcloneS3
from tests.servers import ServerUnavailableError
from tests.ssh_servers import OpenSSH

pytestmark = pytest.mark.soak

KILLS = 20  # of each pair
OBJECTS = 120
MARKER = "storage-backend-marker-"
PATIENCE = 120.0  # seconds for one run, whatever happens to it

# Tells when it begins, so that the kill is in the migration and not in Python's start.
PROGRAM = """
import sys
from storage_backend import UnavailableError, migrate, open_storage

source, target, journal = sys.argv[1:]
try:
    with open_storage(source) as one, open_storage(target, create=True) as other:
        print("begun", flush=True)
        report = migrate(one, other, journal=journal, delete_source=True, flush=False, batch_objects=20)
except UnavailableError:
    sys.exit(3)
sys.exit(0 if report.ok else 3)
"""


@dataclass(frozen=True)
class Side:
    """A store that outlives the process: how it is opened, how its server dies and is born again, and what it must not keep."""

    location: str
    kill: Callable[[], None] | None = None
    start: Callable[[], None] | None = None
    left_over: Callable[[], list[str]] = list

    def open(self) -> StorageBackend:
        return open_storage(self.location, create=True)


def local(stack: ExitStack, folder: Path) -> Side:
    folder.mkdir()
    return Side(str(folder), left_over=lambda: [str(path) for path in folder.rglob(".~sb-*")])


def sqlite(stack: ExitStack, folder: Path) -> Side:
    location = f"sqlite:///{folder}.db"
    open_storage(location, create=True).close()

    def left_over() -> list[str]:
        return ["unpublished"] * rows(location)["unpublished"]

    return Side(location, left_over=left_over)


def ssh(stack: ExitStack, folder: Path) -> Side:
    server = OpenSSH()
    stack.callback(server.stop)
    place = stack.enter_context(server.place())
    given = {
        "key_filename": place.key_filename,
        "known_hosts": place.known_hosts,
        "agent": "false",
        "connection_timeout": "5",
    }
    location = f"ssh://{place.user}@{place.host}:{place.port}{place.base}/{folder.name}?{urllib.parse.urlencode(given)}"
    (place.local / folder.name).mkdir()
    return Side(
        location, server.kill, server.start, lambda: [str(path) for path in place.local.rglob(".~sb-*")]
    )


def s3(stack: ExitStack, folder: Path) -> Side:
    server = RcloneS3()
    stack.callback(server.stop)
    place = stack.enter_context(server.place())
    parameters = urllib.parse.urlencode({"region": place.region, "endpoint_url": place.url})

    def left_over() -> list[str]:
        from botocore.exceptions import ClientError

        try:
            found = server.client().list_multipart_uploads(Bucket=place.bucket)
        except ClientError as error:  # rclone's answer where there is none
            assert error.response["Error"]["Code"] == "NoSuchUpload"  # noqa: PT017
            return []
        return [upload["Key"] for upload in found.get("Uploads", [])]

    return Side(f"s3://{place.bucket}/{folder.name}?{parameters}", server.halt, server.start, left_over)


KINDS = {"local": local, "sqlite": sqlite, "ssh": ssh, "s3": s3}
PAIRS = [
    ("local", "sqlite"),
    ("local", "ssh"),
    ("local", "s3"),
    ("sqlite", "local"),
    ("sqlite", "s3"),
    ("ssh", "local"),
    ("ssh", "s3"),
    ("s3", "local"),
    ("s3", "ssh"),
    ("ssh", "sqlite"),
]


def sample(chance: random.Random, round_: int) -> dict[str, bytes]:
    """Many small objects, some of a few hundred KiB, one that takes several parts."""
    sizes = [chance.choice([0, 1, 100, 3000, 40_000]) for _ in range(OBJECTS)]
    sizes += [400_000] * 5 + [9 << 20]
    return {
        f"{round_}/{number % 9}/{number:04}.bin": chance.randbytes(size) for number, size in enumerate(sizes)
    }


def whole(storage: StorageBackend, expected: dict[str, bytes]) -> set[str]:
    """The expected objects that are there and right; anything wrong fails.

    Raises:
        AssertionError: an object has other content, or nobody put it there.
    """
    found: set[str] = set()
    for identifier in storage.list():
        if identifier.startswith(MARKER):  # its run was killed; another removes it
            continue
        assert identifier in expected, f"{identifier} was never written"
        try:
            content = storage.read(identifier)
        except NotFoundError:
            continue
        assert content == expected[identifier], f"{identifier} has other content"
        found.add(identifier)
    return found


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Iterator[ExitStack]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", RcloneS3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", RcloneS3.secret_key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize(("source_kind", "target_kind"), PAIRS)
def test_kills_lose_nothing(source_kind: str, target_kind: str, tmp_path: Path, stack: ExitStack) -> None:
    chance = random.Random(f"{source_kind} {target_kind}")
    try:
        source = KINDS[source_kind](stack, tmp_path / "source")
        target = KINDS[target_kind](stack, tmp_path / "target")
    except ServerUnavailableError as error:
        unavailable(str(error))
    servers = [side for side in (source, target) if side.kill is not None]
    seen: Counter[str] = Counter()
    expected: dict[str, bytes] = {}
    longest = 1.0  # seconds until a kill
    filled = 0
    while seen["kills"] < KILLS:
        if filled == seen["ended"]:
            fresh = sample(chance, filled)
            expected |= fresh
            with source.open() as storage:
                storage.write_many(fresh.items())
            filled += 1
            seen["objects"] += len(fresh)
            assert filled < 10 * KILLS, f"the kills come too late: {dict(seen)}"
        broken = chance.choice(servers) if servers and chance.random() < 0.5 else None
        code = run(source, target, tmp_path / "journal.db", chance=chance, longest=longest, broken=broken)
        seen["kills"] += code is None
        seen["servers killed"] += broken is not None
        with source.open() as one, target.open() as other:
            at_source, at_target = whole(one, expected), whole(other, expected)
        assert at_source | at_target == expected.keys()
        seen["kills with objects on both sides"] += code is None and bool(at_source) and bool(at_target)
        if code is None and not at_source:
            code = run(source, target, tmp_path / "journal.db")
            assert code == 0
        seen["ended"] += code == 0
        longest = max(longest * 0.7, 0.3) if code == 0 else longest * 1.1 if code is None else longest
    began = time.monotonic()
    while run(source, target, tmp_path / "journal.db") != 0:
        assert time.monotonic() - began < PATIENCE, "it does not end"
    with source.open() as one, target.open() as other:
        assert one.list() == []
        assert whole(other, expected) == expected.keys() == set(other.list())
    assert source.left_over() == []
    assert target.left_over() == []
    print(f"\n{source_kind} to {target_kind}: {dict(seen)}")


def run(
    source: Side,
    target: Side,
    journal: Path,
    *,
    chance: random.Random | None = None,
    longest: float = 0.0,
    broken: Side | None = None,
) -> int | None:
    """The exit code of one migration, None if it was killed.

    Args:
        source: where objects come from.
        target: where they go.
        journal: of all runs.
        chance: says when to kill it; without, it is let alone.
        longest: seconds until the kill, at most.
        broken: the side whose server is killed before, and started again.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, source.location, target.location, journal],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        if chance is not None:
            if broken is not None and broken.kill is not None and broken.start is not None:
                time.sleep(longest * chance.random())
                broken.kill()
                time.sleep(chance.random())
                broken.start()
            time.sleep(longest * chance.random())
            process.kill()
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    if process.returncode == -signal.SIGKILL:
        return None
    assert process.returncode in {0, 3}, errors.decode()
    return process.returncode
