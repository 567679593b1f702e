"""Ask for the size of objects, one by one, of a server that costs next to nothing."""

from __future__ import annotations

from benchmarks.servers import NGINX
from benchmarks.workloads import s3_single as of
from benchmarks.workloads.s3_head import REQUESTS, TARGETS

WORKLOAD = of.workload(
    title="HEAD: the size of an object, of nginx",
    what=(
        "One thread, one request after the other, {objects:,} objects in turn. nginx gives files and looks at no signature, so "
        "that the clients are what is measured. smart_open has no such request."
    ),
    server=NGINX,
    requests=REQUESTS,
    targets=TARGETS,
)
