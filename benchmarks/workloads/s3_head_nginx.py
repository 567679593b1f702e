"""HEAD: the sizes of objects, one by one, from a very fast server."""

from __future__ import annotations

from benchmarks.servers import NGINX
from benchmarks.workloads import s3_single as of
from benchmarks.workloads.s3_head import REQUESTS, TARGETS

WORKLOAD = of.workload(
    title="HEAD: the size of an object, of nginx",
    what=(
        "One thread, one request after the other, {objects:,} objects in turn. nginx checks no "
        "signature, so the clients dominate the times. smart_open has no such request."
    ),
    server=NGINX,
    requests=REQUESTS,
    targets=TARGETS,
)
