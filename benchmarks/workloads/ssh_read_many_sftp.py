"""Read 5,000 small files on an SFTP-only server."""

from __future__ import annotations

from benchmarks import ssh
from benchmarks.harness import Comparison, Contender, Pass, Place, Workload
from benchmarks.servers import OPENSSH_SFTP_ONLY
from benchmarks.workloads import ssh_read_many as of
from benchmarks.workloads.ssh_read_many import slow, with_part

FEWER = {of.RCLONE: 5, of.ASYNCSSH: 2, of.FSSPEC: 5}


def ours(place: Place) -> Pass:
    return of.ours(place, **ssh.SFTP_ONLY)


def our_sync(place: Place) -> Pass:
    return of.our_sync(place, **ssh.SFTP_ONLY)


def rclone(place: Place) -> Pass:
    return of.rclone(place, shell=False)


WORKLOAD = Workload(
    title="Read {half_batch:,} files of 4 KiB, SFTP only",
    what="As `ssh-read-many`, on an sftp-only server, and nobody asks for a shell.",
    contenders=(
        Contender(of.READ, ours, module="paramiko"),
        Contender(of.SYNC, our_sync, module="paramiko"),
        slow(FEWER, of.RCLONE, rclone, program="rclone"),
        slow(FEWER, of.ASYNCSSH, of.asyncssh, module="asyncssh"),
        slow(FEWER, of.FSSPEC, of.fsspec, module="fsspec"),
    ),
    setup=of.setup,
    check=of.check,
    operations=of.operations,
    rounds=3,
    comparisons=(
        *(Comparison(of.READ, with_part(other, FEWER[other]), 3.0) for other in (of.RCLONE, of.FSSPEC)),
        Comparison(of.READ, with_part(of.ASYNCSSH, FEWER[of.ASYNCSSH])),
        Comparison(of.SYNC, with_part(of.RCLONE, FEWER[of.RCLONE])),
    ),
    server=OPENSSH_SFTP_ONLY,
)
