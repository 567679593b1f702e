"""Stat a file over SSH."""

from __future__ import annotations

from benchmarks.workloads import ssh_single as of

WORKLOAD = of.workload(
    "stat",
    title="Stat a file over SSH, one by one",
    what=of.SAID,
    targets={of.ASYNCSSH: 0.9, of.FSSPEC: 0.9},
)
