"""Download one large object into a file, from a server that costs next to nothing."""

from __future__ import annotations

from benchmarks.servers import NGINX
from benchmarks.workloads.s3_download import workload

WORKLOAD = workload(
    "Download a large object from nginx",
    "{large} (`--full`: 1 GiB) into a file. nginx gives it by sendfile, so that the clients are what is measured.",
    NGINX,
)
