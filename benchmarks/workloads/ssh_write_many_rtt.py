"""Write 5,000 small files over SSH, 20 ms away."""

from __future__ import annotations

from benchmarks.servers import OPENSSH_20_MS
from benchmarks.workloads.ssh_write_many import ASYNCSSH, FSSPEC, RCLONE, SAID, workload

WORKLOAD = workload(
    "Write {half_batch:,} files of 4 KiB over SSH at 20 ms",
    SAID.replace("{away}", ", behind a relay that adds 20 ms to a round trip"),
    OPENSSH_20_MS,
    fewer={RCLONE: 50, ASYNCSSH: 5, FSSPEC: 100},
    rsync_target=1.2,
)
