"""As `cache_mixed`, through a cache that holds a third of all bytes."""

from benchmarks.workloads import cache_mixed

WORKLOAD = cache_mixed.workload("which holds a third", cache_mixed.THIRD, None)
