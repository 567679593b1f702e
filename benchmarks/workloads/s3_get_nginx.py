"""GET objects of 4 KiB, one by one, from a very fast server."""

from __future__ import annotations

from benchmarks.servers import NGINX
from benchmarks.workloads import s3_single as of
from benchmarks.workloads.s3_get import REQUESTS, TARGETS

WORKLOAD = of.workload(
    title="GET an object of 4 KiB, from nginx",
    what=(
        "One thread, one request after the other, {objects:,} objects in turn. nginx sends files and "
        "checks no signature, so the clients dominate the times."
    ),
    server=NGINX,
    requests=REQUESTS,
    targets=TARGETS,
)
