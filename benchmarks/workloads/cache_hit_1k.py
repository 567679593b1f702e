"""Read 1 KiB objects from a cache."""

from benchmarks import caches
from benchmarks.workloads import cached

WORKLOAD = cached.hits("1 KiB", cached.KIBIBYTE, {cached.PLAIN: 1 / 1.6, caches.FILECACHE: 3.0})
