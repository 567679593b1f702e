"""Write new 4 KiB objects, one by one."""

from benchmarks.workloads import writing

WORKLOAD = writing.workload(
    "Write a new 4 KiB object",
    "{objects:,} new names in an existing directory. With ours, `os.replace`, obstore and opendal, "
    "readers see a whole object or none; with `open().write()` and fsspec a part is visible. No "
    "contender syncs.",
    fresh=True,
)
