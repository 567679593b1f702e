"""Write new 4 KiB objects, one by one."""

from benchmarks.workloads import writing

WORKLOAD = writing.workload(
    "Write a new 4 KiB object",
    "{objects:,} names to a directory that is there. Ours, `os.replace`, obstore and opendal show readers a whole object or "
    "none; a plain `open().write()` and fsspec show a part. Nobody syncs.",
    fresh=True,
)
