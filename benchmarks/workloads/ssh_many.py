"""Shared by the workloads of many small files over SSH: reading and writing have the same contenders and comparisons."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

from benchmarks import data, ssh
from benchmarks.harness import Comparison, Contender, Pass, Place, Scale, Workload
from benchmarks.servers import OPENSSH_SFTP_ONLY, Server

Way = Callable[[Place], Pass]


def folder(place: Place) -> Path:
    """The files, on the server or for it."""
    return place.shared / f"batch-{place.scale.half_batch}"


def setup(place: Place) -> None:
    data.tree(folder(place), place.scale.half_batch)


def operations(scale: Scale) -> int:
    return scale.half_batch


def with_part(name: str, fewer: int) -> str:
    """The name of a contender that has fewer files."""
    return name if fewer == 1 else f"{name}, 1 in {fewer}"


def slow(
    fewer: dict[str, int], name: str, way: Way, module: str | None = None, program: str | None = None
) -> Contender:
    """A contender that has fewer files, as its name then says."""
    part = fewer.get(name, 1)
    return Contender(with_part(name, part), way, module=module, program=program, fewer=part)


def with_shell(
    way: ModuleType, title: str, what: str, server: Server, *, fewer: dict[str, int], rsync_target: float
) -> Workload:
    """The workload on a server with a shell.

    Args:
        way: `ssh_read_many` or `ssh_write_many`, with the contenders.
        title: of the workload.
        what: of the workload.
        server: of the workload.
        fewer: contenders that get one in so many of the files.
        rsync_target: for our ratio to rsync.
    """
    slow_ones = (way.RCLONE, way.ASYNCSSH, way.FSSPEC)
    return Workload(
        title=title,
        what=what,
        contenders=(
            Contender(way.MANY, way.ours, module="paramiko"),
            Contender(way.SYNC, way.our_sync, module="paramiko"),
            Contender(way.RSYNC, way.rsync, program="rsync"),
            Contender(way.TAR, way.tar, program="ssh"),
            slow(fewer, way.RCLONE, way.rclone, program="rclone"),
            slow(fewer, way.ASYNCSSH, way.asyncssh, module="asyncssh"),
            slow(fewer, way.FSSPEC, way.fsspec, module="fsspec"),
        ),
        setup=setup,
        check=way.check,
        operations=operations,
        rounds=3,
        comparisons=(
            Comparison(way.MANY, way.RSYNC, rsync_target),
            *(Comparison(way.MANY, with_part(other, fewer.get(other, 1)), 10.0) for other in slow_ones),
            Comparison(way.MANY, way.TAR),
            Comparison(way.SYNC, way.RSYNC),
            Comparison(way.SYNC, with_part(way.RCLONE, fewer.get(way.RCLONE, 1))),
        ),
        server=server,
    )


def sftp_only(way: ModuleType, title: str, what: str) -> Workload:
    """The workload on a server without a shell, and without the contenders that need one."""
    fewer = {way.RCLONE: 5, way.ASYNCSSH: 2, way.FSSPEC: 5}
    return Workload(
        title=title,
        what=what,
        contenders=(
            Contender(way.MANY, partial(way.ours, **ssh.SFTP_ONLY), module="paramiko"),
            Contender(way.SYNC, partial(way.our_sync, **ssh.SFTP_ONLY), module="paramiko"),
            slow(fewer, way.RCLONE, partial(way.rclone, shell=False), program="rclone"),
            slow(fewer, way.ASYNCSSH, way.asyncssh, module="asyncssh"),
            slow(fewer, way.FSSPEC, way.fsspec, module="fsspec"),
        ),
        setup=setup,
        check=way.check,
        operations=operations,
        rounds=3,
        comparisons=(
            *(
                Comparison(way.MANY, with_part(other, fewer[other]), 3.0)
                for other in (way.RCLONE, way.FSSPEC)
            ),
            Comparison(way.MANY, with_part(way.ASYNCSSH, fewer[way.ASYNCSSH])),
            Comparison(way.SYNC, with_part(way.RCLONE, fewer[way.RCLONE])),
        ),
        server=OPENSSH_SFTP_ONLY,
    )
