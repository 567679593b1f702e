"""Read 10 MiB objects from a cache."""

from benchmarks.workloads import cached

WORKLOAD = cached.hits("10 MiB", cached.TEN_MEBIBYTES, {cached.PLAIN: 1 / 1.2})
