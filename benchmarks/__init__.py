"""Benchmarks side by side with other libraries and programs: `python -m benchmarks`.

Read in this order:

* `harness`: what a workload is: contenders, data, targets. `workloads/` has one module for each.
* `rounds` runs the contenders in turns, each in a process of `child`; `machine` describes where.
* `results` keeps the measurements in `results/*.json`, `page` makes RESULTS.md of them, `report` prints one in full.
* `servers`, `relay`, `data`: servers on this machine, a link with latency, files.
* `s3`, `ssh`, `caches`, `peers`, `programs`: how each contender is set up. `lru`: what the cache workloads draw.
* `calls` (`python -m benchmarks.calls`) counts the functions and files that one operation enters.
"""
