"""find: finds objects by name, size and age."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import click

from storage_backend import identifiers
from storage_backend.base import StorageBackend
from storage_backend.cli.contents import contents_of
from storage_backend.cli.output import ONE_LEVEL, Lines, Outcomes, common, print_error, record_of
from storage_backend.cli.units import SizeRange, moment_of, sizes_of
from storage_backend.defensive import info_of
from storage_backend.identifiers import Glob
from storage_backend.info import ObjectInfo
from storage_backend.location_parser import locations_in

T = TypeVar("T")


def _read(parse: Callable[[str], T]) -> Callable[[click.Context, click.Parameter, str | None], T | None]:
    """A click callback that converts the value of an option by *parse*, which raises ValueError for a wrong one."""

    def read(context: click.Context, option: click.Parameter, value: str | None) -> T | None:  # noqa: ARG001 - click's
        try:
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return read


def _name(text: str) -> Glob:
    if "/" in text:
        raise ValueError(f'{text!r} has a "/"; --name matches only the last part, --pattern the whole name')
    return identifiers.glob(text)


def _moment(text: str) -> datetime:
    return moment_of(text, datetime.now(UTC))


@dataclass(slots=True)
class ObjectFilter:
    """The conditions that an object must meet; None means no condition.

    Attributes:
        unknown: the number of objects left out because their time is unknown.
    """

    name: Glob | None
    pattern: Glob | None
    sizes: SizeRange | None
    newer: datetime | None
    older: datetime | None
    unknown: int = field(default=0, init=False)

    def scan(self, storage: StorageBackend) -> Iterator[ObjectInfo]:
        """All objects that may match."""
        return storage.scan(self.pattern.stem if self.pattern is not None else "")

    def matches(self, storage: StorageBackend, info: ObjectInfo) -> bool:
        """Whether the object matches. Sends a request if the listing lacks size or time."""
        identifier = info.identifier
        if self.name is not None and not self.name.matches(identifier.rpartition("/")[2]):
            return False
        if self.pattern is not None and not self.pattern.matches(identifier):
            return False
        by_time = self.newer is not None or self.older is not None
        if (self.sizes is not None and info.size is None) or (by_time and info.modified is None):
            try:
                info = info_of(storage.stat(identifier), identifier)
            except FileNotFoundError:
                return False
        if self.sizes is not None and info.size not in self.sizes:
            return False
        if not by_time:
            return True
        if info.modified is None:
            self.unknown += 1
            return False
        return (self.newer is None or info.modified >= self.newer) and (
            self.older is None or info.modified < self.older
        )


@click.command(no_args_is_help=True)
@click.argument("locations", metavar="LOCATION...", nargs=-1, required=True)
@click.option("--name", metavar="GLOB", callback=_read(_name), help='The last part matches, as "*.pdf".')
@click.option(
    "--pattern",
    metavar="GLOB",
    callback=_read(identifiers.glob),
    help='The whole name beneath LOCATION matches, as "2026/**/*.pdf".',
)
@click.option(
    "--size",
    "sizes",
    metavar="SIZE",
    callback=_read(sizes_of),
    help="+10M: at least; -1k: at most; 1k..10M: from and to; 4096: exactly. Units of 1024: k, M, G, T, P.",
)
@click.option(
    "--newer",
    metavar="AGE",
    callback=_read(_moment),
    help="Changed less than 90s, 30m, 12h, 7d or 2w ago; or at or after 2026-01-31, 2026-01-31T12:30Z (UTC).",
)
@click.option("--older", metavar="AGE", callback=_read(_moment), help="Changed before that.")
@click.option("-0", "--null", is_flag=True, help="End locations with NUL, for xargs -0.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@common
def find(  # noqa: PLR0917 - click passes them by name
    locations: tuple[str, ...],
    name: Glob | None,
    pattern: Glob | None,
    sizes: SizeRange | None,
    newer: datetime | None,
    older: datetime | None,
    null: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Print the location of each object that meets all conditions.

    The other commands accept these locations: use -0 and xargs -0. An object whose time is unknown is neither newer nor older.

    \b
    Examples:
      storage-backend find ./papers --name '*.pdf' --size +10M
      storage-backend find s3://bucket/logs/ --pattern '2026/**' --newer 7d
      storage-backend find sqlite:///archive.db --older 2026-01-31 --size 1k..1M --json
      storage-backend find s3://bucket/logs/ --older 4w -0 | xargs -0 -r storage-backend rm
      storage-backend find ./papers --name '*.txt' -0 | xargs -0 -r storage-backend cat
    """
    lines, outcomes = Lines(null=null), Outcomes()
    wanted = ObjectFilter(name, pattern, sizes, newer, older)
    some = False
    for location in locations:
        with outcomes.each(), contents_of(location, wanted.scan) as contents:
            located = locations_in(location)
            for info in contents.entries:
                if not wanted.matches(contents.storage, info):
                    continue
                some = True
                where = location if contents.single else located(info.identifier)
                if as_json:
                    lines.record({"location": where, **record_of(info)})
                else:
                    lines.name(where)
    if wanted.unknown and not quiet:
        print_error(f"left out {wanted.unknown:,} objects whose time is unknown")
    elif not (some or outcomes.errors or quiet):
        level = pattern is not None and "*" in pattern.pattern and "/" not in pattern.pattern
        print_error(f"no object meets all conditions{f'; {ONE_LEVEL}' if level else ''}")
    return outcomes.code
