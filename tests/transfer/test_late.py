"""Transfers while the interpreter ends: in an atexit handler, and in a thread that outlives the main one."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from storage_backend import DatabaseStorage, LocalStorage, S3Storage, migrate, sync
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.ssh_servers import SSHPlace
from tests.transfer.samples import contents, memory

PROGRAM = """
import atexit, json, sys, threading
from storage_backend import DatabaseStorage, LocalStorage, RemoteStorage, S3Storage, migrate, sync

how, folder, config, base, url, access_key, secret_key = sys.argv[1:]

def work():
    source = LocalStorage(f"{folder}/source")
    names = [f"{number % 3}/{number}" for number in range(120)]
    source.write_many((name, name.encode()) for name in names)
    s3 = S3Storage("bucket", endpoint_url=url, region="us-east-1", access_key=access_key, secret_key=secret_key)
    with s3, RemoteStorage(json.loads(config), base) as there, DatabaseStorage(f"sqlite:///{folder}/x.db") as box:
        assert sync(source, there).copied == 120
        assert dict(there.read_many(names)) == {name: name.encode() for name in names}
        assert migrate(there, s3, journal=f"{folder}/one.db", on_event=lambda event: None).copied == 120
        assert migrate(s3, box, journal=f"{folder}/two.db", delete_source=True).source_deleted == 120
        assert box.list() == sorted(names)
    print("done")

def late():
    threading.main_thread().join()
    work()

if how == "atexit":
    atexit.register(work)
else:
    threading.Thread(target=late).start()
"""


@pytest.mark.parametrize("how", ["atexit", "thread"])
def test_everything_works_while_the_interpreter_ends(
    how: str, openssh_place: SSHPlace, tmp_path: Path
) -> None:
    with S3Server() as server:
        server.create_bucket("bucket")
        config = json.dumps(openssh_place.config())
        command = [sys.executable, "-c", PROGRAM, how, str(tmp_path), config, openssh_place.base]
        done = subprocess.run(
            [*command, server.url, ACCESS_KEY, SECRET_KEY], capture_output=True, text=True, check=False
        )
    assert done.stdout == "done\n", done.stderr


def test_where_no_thread_can_be_started_any_more_the_caller_does_it_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As since Python 3.12, which refuses from the end of the main thread on."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("storage-"):
            raise RuntimeError("can't create new thread at interpreter shutdown")
        start(thread)

    objects = {f"{number}": b"%d" % number for number in range(100)}
    source = memory(objects)
    with S3Server() as server, DatabaseStorage(f"sqlite:///{tmp_path}/x.db") as box:
        server.create_bucket("bucket")
        with S3Storage(
            "bucket",
            endpoint_url=server.url,
            region="us-east-1",
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
        ) as s3:
            monkeypatch.setattr(threading.Thread, "start", refuse)
            assert sync(source, s3, on_event=lambda _: None).copied == 100
            assert migrate(s3, box, journal=tmp_path / "j", delete_source=True, delete=True).copied == 100
            assert sync(box, LocalStorage(tmp_path / "folder"), delete=True).copied == 100
            assert contents(LocalStorage(tmp_path / "folder")) == objects
            monkeypatch.undo()
