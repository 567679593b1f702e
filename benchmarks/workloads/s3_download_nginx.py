"""Download one large object into a file, from a very fast server."""

from __future__ import annotations

from benchmarks.servers import NGINX
from benchmarks.workloads.s3_download import workload

WORKLOAD = workload(
    "Download a large object from nginx",
    "{large} (`--full`: 1 GiB) into a file. nginx sends it by sendfile, so the clients dominate the times.",
    NGINX,
)
