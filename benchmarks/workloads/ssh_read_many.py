"""Read 5,000 small files over SSH: into memory, and into a folder."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import data, ssh
from benchmarks.harness import Comparison, Contender, Pass, Place, Scale, Workload, expect
from benchmarks.servers import OPENSSH, Server
from benchmarks.workloads.s3_read_many import counted

READ = "read_many()"
SYNC = "sync() to a folder"
RSYNC = "rsync -W to a folder"
TAR = "ssh tar to a folder"
RCLONE = "rclone copy to a folder"
ASYNCSSH = "asyncssh, 64 at a time"
FSSPEC = "fsspec cat"

Way = Callable[[Place], Pass]


def folder(place: Place) -> Path:
    """The files, on the server or for it."""
    return place.shared / f"batch-{place.scale.half_batch}"


def setup(place: Place) -> None:
    data.tree(folder(place), place.scale.half_batch)


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


def operations(scale: Scale) -> int:
    return scale.half_batch


def check(place: Place, result: Any) -> None:
    expected = place.scale.half_batch, place.scale.half_batch * data.SMALL
    copy = place.scratch / "copy"
    if copy.exists():
        expect(data.contents(copy) == expected, "not all is in the folder")
    expect(result in {None, expected}, f"{result} of {expected}")


def with_part(name: str, fewer: int) -> str:
    """The name of a contender that has fewer files."""
    return name if fewer == 1 else f"{name}, 1 in {fewer}"


def slow(
    fewer: dict[str, int], name: str, way: Way, module: str | None = None, program: str | None = None
) -> Contender:
    """A contender that has fewer files, as its name then says."""
    part = fewer.get(name, 1)
    return Contender(with_part(name, part), way, module=module, program=program, fewer=part)


def workload(
    title: str, what: str, server: Server, *, fewer: dict[str, int], rsync_target: float
) -> Workload:
    """The workload on a server with a shell; *fewer* has the contenders that would take too long for all files."""
    return Workload(
        title=title,
        what=what,
        contenders=(
            Contender(READ, ours, module="paramiko"),
            Contender(SYNC, our_sync, module="paramiko"),
            Contender(RSYNC, rsync, program="rsync"),
            Contender(TAR, tar, program="ssh"),
            slow(fewer, RCLONE, rclone, program="rclone"),
            slow(fewer, ASYNCSSH, asyncssh, module="asyncssh"),
            slow(fewer, FSSPEC, fsspec, module="fsspec"),
        ),
        setup=setup,
        check=check,
        operations=operations,
        rounds=3,
        comparisons=(
            Comparison(READ, RSYNC, rsync_target),
            *(
                Comparison(READ, with_part(other, fewer.get(other, 1)), 10.0)
                for other in (RCLONE, ASYNCSSH, FSSPEC)
            ),
            Comparison(READ, TAR),
            Comparison(SYNC, RSYNC),
            Comparison(SYNC, with_part(RCLONE, fewer.get(RCLONE, 1))),
        ),
        server=server,
    )


SAID = (
    "Times are per file; OpenSSH's sshd on this machine{away}. Contenders that copy into a folder "
    "also list the source; files of ours, rsync and rclone appear whole or not at all. Programs are "
    'timed from start to end. "1 in N": the contender has one in N of the files, because all would '
    "take too long."
)

WORKLOAD = workload(
    "Read {half_batch:,} files of 4 KiB over SSH",
    SAID.replace("{away}", ""),
    OPENSSH,
    fewer={RCLONE: 5, ASYNCSSH: 2, FSSPEC: 5},
    rsync_target=0.9,
)
