"""cache stats, clear, check: inspect, empty and repair the directory of a CachedStorage."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from storage_backend.cli.exit_codes import Exit
from storage_backend.cli.groups import CommandGroup
from storage_backend.cli.output import Lines, common
from storage_backend.cli.standard_streams import ignore_output_errors

if TYPE_CHECKING:  # imported by the commands that use it
    from storage_backend.wrappers.cached.engine import CacheEngine


@click.group(cls=CommandGroup)
def cache() -> None:
    """Show, empty or check the directory of a cache.

    Other programs may use the cache at the same time.

    A program that reads many small objects through a cache should call `read_many(ids)`, or `prefetch(ids)` before it reads: with a cold
    cache of a server's files, that takes about a third of the time of a pool of threads that call `read`.

    \b
      papers = CachedStorage(RemoteStorage(...), "/tmp/papers")
      for name, content in papers.read_many(papers.list("2026/*.txt")):
          ...

    \b
    Examples:
      storage-backend cat 'cached+s3://bucket/report.pdf?cache_dir=/tmp/papers&max_mb=1000&ttl=3600' > report.pdf
      storage-backend cache stats /tmp/papers
      storage-backend cache check /tmp/papers
      storage-backend cache clear /tmp/papers
    """


@cache.command(no_args_is_help=True)
@click.argument("directory", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@common
def stats(directory: str, as_json: bool, quiet: bool) -> int:
    """Show the size of the cache, and the hits and misses of all its users.

    \b
    Examples:
      storage-backend cache stats ~/.cache/storage-backend
      storage-backend cache stats --json /tmp/papers
    """
    del quiet
    with _cache_in(directory) as engine:
        found = engine.stats()
    counters = found.counters
    reads = counters.hits + counters.misses
    rate = counters.hits / reads if reads else 0.0
    if as_json:
        Lines().record(
            {"size": found.size, "file_count": found.count, "hit_rate": rate, **counters._asdict()}
        )
        return Exit.DONE
    lines = Lines()
    lines.text(f"entries      {found.count:,}")
    lines.text(f"size         {_mebibytes(found.size)}")
    lines.text(f"reads        {reads:,}: {counters.hits:,} hits, {counters.misses:,} misses, {rate:.1%} hit")
    lines.text(f"expired      {counters.expired:,}")
    lines.text(f"evicted      {counters.evictions:,}")
    lines.text(f"saved        {_mebibytes(counters.bytes_saved)} not read from the backend")
    return Exit.DONE


@cache.command(no_args_is_help=True)
@click.argument("directory", metavar="DIR")
@common
def clear(directory: str, quiet: bool) -> int:
    """Remove all entries of the cache. The cached objects themselves are not touched.

    \b
    Examples:
      storage-backend cache clear /tmp/papers
    """
    ignore_output_errors()
    with _cache_in(directory) as engine:
        before = engine.stats()
        engine.clear(patient=True)
    if not quiet:
        Lines().text(f"removed {before.count:,} entries, {_mebibytes(before.size)}")
    return Exit.DONE


@cache.command(no_args_is_help=True)
@click.argument("directory", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@common
def check(directory: str, as_json: bool, quiet: bool) -> int:
    """Read every entry, compare it with its checksum, and remove damaged ones.

    The exit code is 4 if something was removed or missing.

    \b
    Examples:
      storage-backend cache check /tmp/papers
    """
    ignore_output_errors()
    with _cache_in(directory) as engine:
        found = engine.check()
    if as_json:
        Lines().record(dataclasses.asdict(found))
    elif not quiet or not found.clean:
        Lines().text(
            f"{found.entries:,} entries are whole, {_mebibytes(found.size)}; removed {found.damaged:,} damaged, "
            f"{found.strays:,} stray files; {found.missing:,} were missing"
        )
    return Exit.DONE if found.clean else Exit.DIFFERENT


@contextmanager
def _cache_in(directory: str) -> Iterator[CacheEngine]:
    from storage_backend.wrappers.cached import open_cache

    engine = open_cache(directory)
    try:
        yield engine
    finally:
        engine.close()


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
