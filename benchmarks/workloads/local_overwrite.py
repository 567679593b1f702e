"""Replace 4 KiB objects, one by one."""

from benchmarks.workloads import writing

WORKLOAD = writing.workload(
    "Overwrite a 4 KiB object",
    "{objects:,} names in one directory, repeatedly. With ours, `os.replace`, obstore and opendal, "
    "readers see the old object or the new one; `open().write()` and fsspec truncate it first. No "
    "contender syncs.",
    fresh=False,
)
