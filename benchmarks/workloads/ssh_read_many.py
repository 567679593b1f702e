"""Read 5,000 small files over SSH: into memory, and into a folder."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from benchmarks import data, ssh
from benchmarks.harness import Pass, Place, expect
from benchmarks.servers import OPENSSH
from benchmarks.workloads.s3_read_many import counted
from benchmarks.workloads.ssh_many import folder, with_shell

MANY = "read_many()"
SYNC = "sync() to a folder"
RSYNC = "rsync -W to a folder"
TAR = "ssh tar to a folder"
RCLONE = "rclone copy to a folder"
ASYNCSSH = "asyncssh, 64 at a time"
FSSPEC = "fsspec cat"


def paths(place: Place) -> list[str]:
    return [f"{folder(place)}/{name}" for name in data.names(place.scale.half_batch)]


def ours(place: Place, **settings: Any) -> Pass:
    storage = ssh.ours(place, folder(place), **settings)
    wanted = [*data.names(place.scale.half_batch)]
    return lambda: counted(content for _, content in storage.read_many(wanted))


def our_sync(place: Place, **settings: Any) -> Pass:
    from storage_backend import LocalStorage, sync

    source = ssh.ours(place, folder(place), **settings)
    target = LocalStorage(place.scratch / "copy")

    def run() -> tuple[int, int]:
        report = sync(source, target)
        report.raise_for_failures()
        return report.copied, report.bytes

    return run


def rsync(place: Place) -> Pass:
    return ssh.rsync(place, f"{ssh.remote(folder(place))}/", f"{place.scratch}/copy/")


def tar(place: Place) -> Pass:
    (place.scratch / "copy").mkdir()
    command = f"tar cf - -C {shlex.quote(str(folder(place)))} ."
    return ssh.ssh(place, command, after=f"| tar xf - -C {shlex.quote(str(place.scratch / 'copy'))}")


def rclone(place: Place, *, shell: bool = True) -> Pass:
    return ssh.rclone(place, "copy", f"ssh:{folder(place)}", f"{place.scratch}/copy", shell=shell)


def asyncssh(place: Place) -> Pass:
    client = ssh.AsyncSSH(place)
    found: list[bytes] = []

    async def read(path: str) -> None:
        async with client.sftp.open(path, "rb") as file:
            found.append(await file.read())

    def run() -> tuple[int, int]:
        client.all_of(read, paths(place))
        return counted(found)

    return run


def fsspec(place: Place) -> Pass:
    files = ssh.fsspec(place)
    return lambda: counted(files.cat(paths(place)).values())


def check(place: Place, result: Any) -> None:
    expected = place.scale.half_batch, place.scale.half_batch * data.SMALL
    copy = place.scratch / "copy"
    if copy.exists():
        expect(data.contents(copy) == expected, "not all is in the folder")
    expect(result in {None, expected}, f"{result} of {expected}")


SAID = (
    "Times are per file; OpenSSH's sshd on this machine{away}. Contenders that copy into a folder "
    "also list the source; files of ours, rsync and rclone appear whole or not at all. Programs are "
    'timed from start to end. "1 in N": the contender has one in N of the files, because all would '
    "take too long."
)

WORKLOAD = with_shell(
    sys.modules[__name__],
    "Read {half_batch:,} files of 4 KiB over SSH",
    SAID.replace("{away}", ""),
    OPENSSH,
    fewer={RCLONE: 5, ASYNCSSH: 2, FSSPEC: 5},
    rsync_target=0.9,
)
