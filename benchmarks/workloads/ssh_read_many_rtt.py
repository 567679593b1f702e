"""Read 5,000 small files over SSH, 20 ms away."""

from __future__ import annotations

from benchmarks.servers import OPENSSH_20_MS
from benchmarks.workloads import ssh_read_many as way
from benchmarks.workloads.ssh_many import with_shell

WORKLOAD = with_shell(
    way,
    "Read {half_batch:,} files of 4 KiB over SSH at 20 ms",
    way.SAID.replace("{away}", ", behind a relay that adds 20 ms to a round trip"),
    OPENSSH_20_MS,
    fewer={way.RCLONE: 20, way.ASYNCSSH: 5, way.FSSPEC: 100},
    rsync_target=1.2,
)
