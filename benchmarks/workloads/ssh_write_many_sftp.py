"""Write 5,000 small files on an SFTP-only server."""

from __future__ import annotations

from benchmarks.workloads import ssh_write_many
from benchmarks.workloads.ssh_many import sftp_only

WORKLOAD = sftp_only(
    ssh_write_many,
    "Write {half_batch:,} files of 4 KiB, SFTP only",
    "As `ssh-write-many`, on an SFTP-only server. No contender uses a shell, so rclone compares "
    "nothing afterwards.",
)
