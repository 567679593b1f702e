"""Upload one large file over SSH, 20 ms away."""

from __future__ import annotations

from benchmarks.harness import Comparison, Scale, Workload
from benchmarks.servers import OPENSSH_20_MS
from benchmarks.workloads import ssh_upload as of
from benchmarks.workloads.ssh_download import check, contender, setup


def halved(scale: Scale) -> int:
    return scale.half_large


WORKLOAD = Workload(
    title="Upload a large file over SSH at 20 ms",
    what=(
        "{half_large}; as `ssh-upload`, with a relay that adds 20 ms to each round trip. The relay "
        "terminates TCP on both sides, so TCP's slow start is not delayed: only SSH waits. Programs "
        "connect within their time, in about seven round trips."
    ),
    contenders=(
        contender(of.UPLOAD, of.ours, halved, module="paramiko"),
        contender(of.CAT, of.cat, halved, program="ssh"),
        contender(of.SCP, of.scp, halved, program="scp"),
        contender(of.RSYNC, of.rsync, halved, program="rsync"),
        contender(of.RCLONE, of.rclone, halved, program="rclone"),
        contender(of.ASYNCSSH, of.asyncssh, halved, module="asyncssh"),
        contender(of.FSSPEC, of.fsspec, halved, module="fsspec"),
    ),
    setup=setup(halved),
    check=check(halved),
    rounds=3,
    comparisons=(
        Comparison(of.UPLOAD, of.RSYNC, 0.9),
        Comparison(of.UPLOAD, of.SCP, 0.9),
        Comparison(of.UPLOAD, of.FSSPEC, 1.5),
        *(Comparison(of.UPLOAD, other) for other in (of.CAT, of.RCLONE, of.ASYNCSSH)),
    ),
    server=OPENSSH_20_MS,
)
