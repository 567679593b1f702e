"""Upload one large file over SSH, 20 ms away."""

from __future__ import annotations

from benchmarks.workloads import ssh_upload
from benchmarks.workloads.ssh_download import at_20_ms

WORKLOAD = at_20_ms(ssh_upload, "Upload")
