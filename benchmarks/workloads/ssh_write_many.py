"""Write 5,000 small files over SSH: from memory, and from a folder."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks import data, ssh
from benchmarks.harness import Pass, Place, expect
from benchmarks.servers import OPENSSH
from benchmarks.workloads.ssh_many import folder, with_shell

MANY = "write_many()"
SYNC = "sync() of a folder"
RSYNC = "rsync -W of a folder"
TAR = "ssh tar of a folder (not atomic)"
RCLONE = "rclone copy of a folder"
ASYNCSSH = "asyncssh, 64 at a time"
FSSPEC = "fsspec pipe (not atomic)"
COPY = "copy"


def items(place: Place) -> Iterator[tuple[str, bytes]]:
    """Name and content of each object."""
    block = data.content()
    names = data.names(place.scale.half_batch)
    return ((name, index.to_bytes(8, "big") + block[8:]) for index, name in enumerate(names))


def ours(place: Place, **settings: Any) -> Pass:
    storage = ssh.ours(place, place.scratch / COPY, **settings)
    given = [*items(place)]
    return lambda: storage.write_many(given)


def our_sync(place: Place, **settings: Any) -> Pass:
    from storage_backend import LocalStorage, sync

    source = LocalStorage(folder(place))
    target = ssh.ours(place, place.scratch / COPY, **settings)
    return lambda: sync(source, target).raise_for_failures()


def rsync(place: Place) -> Pass:
    return ssh.rsync(place, f"{folder(place)}/", f"{ssh.remote(place.scratch / COPY)}/")


def tar(place: Place) -> Pass:
    copy = shlex.quote(str(place.scratch / COPY))
    before = f"tar cf - -C {shlex.quote(str(folder(place)))} . |"
    return ssh.ssh(place, f"mkdir {copy} && tar xf - -C {copy}", before=before)


def rclone(place: Place, *, shell: bool = True) -> Pass:
    return ssh.rclone(place, "copy", str(folder(place)), f"ssh:{place.scratch}/{COPY}", shell=shell)


def with_directories(place: Place) -> list[tuple[str, bytes]]:
    """Path and content of each object, for contenders that do not make directories: these exist already."""
    found = [(f"{place.scratch}/{COPY}/{name}", content) for name, content in items(place)]
    for directory in {os.path.dirname(path) for path, _ in found}:
        os.makedirs(directory)
    return found


def asyncssh(place: Place) -> Pass:
    client = ssh.AsyncSSH(place)
    given = with_directories(place)

    async def write(item: tuple[str, bytes]) -> None:
        path, content = item
        async with client.sftp.open(f"{path}.unfinished", "wb") as file:
            await file.write(content)
        await client.sftp.posix_rename(f"{path}.unfinished", path)

    return lambda: client.all_of(write, given)


def fsspec(place: Place) -> Pass:
    files = ssh.fsspec(place)
    given = dict(with_directories(place))
    return lambda: files.pipe(given)


def check(place: Place, _result: Any) -> None:
    found = data.contents(place.scratch / COPY)
    expect(found == (place.scale.half_batch, place.scale.half_batch * data.SMALL), f"{found} stored")


SAID = (
    "Times are per file; OpenSSH's sshd on this machine{away}. Ours, rsync, rclone and asyncssh write"
    " to a temporary name and rename. For asyncssh and fsspec the directories exist already. "
    "Contenders that copy a folder also read it; rclone and sync() also list the target. Programs are"
    ' timed from start to end. rclone compares the MD5 of each file afterwards. "1 in N": the '
    "contender has one in N of the files, because all would take too long."
)

WORKLOAD = with_shell(
    sys.modules[__name__],
    "Write {half_batch:,} files of 4 KiB over SSH",
    SAID.replace("{away}", ""),
    OPENSSH,
    fewer={RCLONE: 5, ASYNCSSH: 2, FSSPEC: 5},
    rsync_target=0.9,
)
