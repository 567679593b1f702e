"""Replace 4 KiB objects, one by one."""

from benchmarks.workloads import writing

WORKLOAD = writing.workload(
    "Overwrite a 4 KiB object",
    "{objects:,} names in one directory, again and again. Ours, `os.replace`, obstore and opendal show readers the old object "
    "or the new; a plain `open().write()` and fsspec truncate it first. Nobody syncs.",
    fresh=False,
)
