"""Read 100 KiB objects from a cache."""

from benchmarks import caches
from benchmarks.workloads import cached

WORKLOAD = cached.hits(
    "100 KiB", cached.HUNDRED, {cached.PLAIN: 1 / 1.2, caches.DISKCACHE: 4.0, caches.FILECACHE: 3.0}
)
