"""Read a file of 4 KiB over SSH."""

from __future__ import annotations

from benchmarks.workloads import ssh_single as of

WORKLOAD = of.workload(
    "read",
    title="Read a file of 4 KiB over SSH, one by one",
    what=of.SAID,
    targets={of.ASYNCSSH: 1.4, of.FSSPEC: 1.4},
)
