"""Write a file of 4 KiB over SSH."""

from __future__ import annotations

from benchmarks.workloads import ssh_single as of

WORKLOAD = of.workload(
    "write",
    title="Write a file of 4 KiB over SSH, one by one",
    what=" Ours, asyncssh, paramiko and sshfs write to a temporary name and rename; fsspec writes in place.",
    targets={of.ASYNCSSH: 1.4, of.FSSPEC: 1.4},
)
