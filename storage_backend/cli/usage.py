"""du, tree: show the sizes of folders, and the tree of objects."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import click

from storage_backend.base import StorageBackend
from storage_backend.cli.contents import Contents, all_objects, contents_of, size_of
from storage_backend.cli.output import Lines, Outcomes, coloured, common, record_of
from storage_backend.cli.units import amount, shown_size, size_width
from storage_backend.info import ObjectInfo

MOST_HELD = 10_000  # lines of a tree held until their successors are known


@dataclass(slots=True)
class FolderTotal:
    """The bytes and objects beneath a folder, which is "name/", or "" for the root."""

    prefix: str = ""
    size: int = 0
    objects: int = 0

    def add(self, other: FolderTotal) -> None:
        """Add the counts of *other*."""
        self.size += other.size
        self.objects += other.objects

    def line(self, name: str, *, human: bool) -> tuple[str, str]:
        """The arguments *name* and *before* of `Lines.name`."""
        return name, f"{shown_size(self.size, human=human):>{size_width(human=human)}}  {self.objects:>9}  "


@click.command(no_args_is_help=True, context_settings={"help_option_names": ["--help"]})
@click.argument("locations", metavar="LOCATION...", nargs=-1, required=True)
@click.option("-h", "--human-readable", "human", is_flag=True, help="Sizes as 1.23 MiB.")
@click.option("-s", "--summarize", is_flag=True, help="Only one line for each LOCATION.")
@click.option(
    "-d", "--depth", type=click.IntRange(min=0), metavar="N", help="Only folders up to N levels deep."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@coloured
@common
def du(  # noqa: PLR0917 - click passes them by name
    locations: tuple[str, ...], human: bool, summarize: bool, depth: int | None, as_json: bool, quiet: bool
) -> int:
    """Show how many bytes and objects there are beneath each folder.

    Each line has bytes, objects, and the folder; the last line of each LOCATION is its total. Sizes are those of the objects, not of disk
    blocks. After several LOCATIONs follows the total of all.

    \b
    Examples:
      storage-backend du ./papers
      storage-backend du -h --depth 1 s3://bucket/papers/
      storage-backend du -s ./papers sqlite:///archive.db
      storage-backend du --json ./papers | jq -s 'max_by(.objects)'
    """
    del quiet
    if summarize and depth:
        raise click.UsageError("--summarize is --depth 0: give one of the two")
    most = 0 if summarize else depth
    lines, outcomes, everything = Lines(), Outcomes(), FolderTotal()
    for location in locations:
        with outcomes.each(), contents_of(location, all_objects) as contents:
            for total in _totals(contents):
                if total.prefix and most is not None and total.prefix.count("/") > most:
                    continue
                if as_json:
                    lines.record(
                        {
                            "location": location,
                            "prefix": total.prefix,
                            "size": total.size,
                            "objects": total.objects,
                        }
                    )
                else:
                    lines.name(*total.line(total.prefix or location, human=human))
            everything.add(total)
    if len(locations) > 1 and not as_json:
        lines.text("".join(reversed(everything.line("total", human=human))))
    return outcomes.code


def _totals(contents: Contents[ObjectInfo]) -> Iterator[FolderTotal]:
    """Yield each folder when the scan leaves it, the root last. Only the parents of the current object are held in memory."""
    above = [FolderTotal()]
    for info in contents.entries:
        size = size_of(contents.storage, info)
        if size is None:
            continue
        name = info.identifier
        while not name.startswith(above[-1].prefix):
            done = above.pop()
            above[-1].add(done)
            yield done
        # A location that names one object has no folders, whatever the object's name.
        while not contents.single and (slash := name.find("/", len(above[-1].prefix))) >= 0:
            above.append(FolderTotal(name[: slash + 1]))
        above[-1].size += size
        above[-1].objects += 1
    while above:
        done = above.pop()
        if above:
            above[-1].add(done)
        yield done


@click.command(no_args_is_help=True)
@click.argument("locations", metavar="LOCATION...", nargs=-1, required=True)
@click.option("-d", "--depth", type=click.IntRange(min=1), metavar="N", help="List only N levels deep.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@coloured
@common
def tree(locations: tuple[str, ...], depth: int | None, as_json: bool, quiet: bool) -> int:
    """Show folders and objects as a tree, and their number.

    The tree is printed while it is listed. If the last folder of a level has more than 10,000 lines, it is drawn as if another one
    followed.

    \b
    Examples:
      storage-backend tree ./papers
      storage-backend tree --depth 2 s3://bucket/papers/
      storage-backend tree 'sqlite:///archive.db#2024'
    """
    lines, outcomes = Lines(), Outcomes()

    def entries(storage: StorageBackend) -> Iterator[ObjectInfo | str]:
        return _with_folders(storage.scan()) if depth is None else _levels(storage, "", depth)

    for number, location in enumerate(locations):
        with outcomes.each(), contents_of(location, entries) as contents:
            if not as_json:
                lines.name(location, before="\n" if number else "")
            count = FolderTotals()
            counted = count.each(contents.entries)
            if as_json:
                for entry in counted:
                    lines.record({"prefix": entry} if isinstance(entry, str) else record_of(entry))
                lines.record({"location": location, **count.record()})
            else:
                for branch in _branches(counted):
                    lines.name(branch.name, before=branch.rule())
                if not quiet:
                    lines.text(f"\n{count}")
    return outcomes.code


def _with_folders(infos: Iterable[ObjectInfo]) -> Iterator[ObjectInfo | str]:
    """*infos*, each folder as "name/" before the first object beneath it."""
    folder = ""
    for info in infos:
        name = info.identifier
        while not name.startswith(folder):
            folder = folder[: folder.rfind("/", 0, -1) + 1]
        while (slash := name.find("/", len(folder))) >= 0:
            folder = name[: slash + 1]
            yield folder
        yield info


def _levels(storage: StorageBackend, prefix: str, depth: int) -> Iterator[ObjectInfo | str]:
    """As `_with_folders`, from one listing per folder, down to *depth* levels."""
    for entry in storage.scan_level(prefix):
        yield entry
        if isinstance(entry, str) and depth > 1:
            yield from _levels(storage, entry, depth - 1)


@dataclass(slots=True)
class FolderTotals:
    """Counts of a tree."""

    folders: int = 0
    objects: int = 0
    size: int | None = 0

    def each(self, entries: Iterable[ObjectInfo | str]) -> Iterator[ObjectInfo | str]:
        """Yield *entries* and count them."""
        for entry in entries:
            if isinstance(entry, str):
                self.folders += 1
            else:
                self.objects += 1
                self.size = None if self.size is None or entry.size is None else self.size + entry.size
            yield entry

    def record(self) -> dict[str, int]:
        """The counts as JSON values; without the size if the listing lacks some sizes."""
        known = {} if self.size is None else {"size": self.size}
        return {"folders": self.folders, "objects": self.objects, **known}

    def __str__(self) -> str:
        counts = [
            f"{count:,} {what}{'' if count == 1 else 's'}"
            for count, what in ((self.folders, "folder"), (self.objects, "object"))
        ]
        return ", ".join(counts if self.size is None else [*counts, amount(self.size)])


@dataclass(slots=True)
class TreeBranch:
    """A line of a tree.

    Attributes:
        name: the last part of the name; a folder's ends in "/".
        above: its parent folders, outermost first.
        last: whether it is the last on its level; None while unknown.
    """

    name: str
    above: tuple[TreeBranch, ...] = ()
    last: bool | None = None

    def is_settled(self) -> bool:
        """Whether it can be drawn."""
        return self.last is not None and all(folder.last is not None for folder in self.above)

    def settle(self) -> None:
        """Where it is unknown whether another line follows, assume that one does."""
        for branch in (*self.above, self):
            if branch.last is None:
                branch.last = False

    def rule(self) -> str:
        """The lines drawn before the name."""
        return "".join("    " if folder.last else "│   " for folder in self.above) + (
            "└── " if self.last else "├── "
        )


def _branches(entries: Iterable[ObjectInfo | str]) -> Iterator[TreeBranch]:
    """Yield the lines of a tree in order, each when it is known whether another follows on its level and those above."""
    waiting: deque[TreeBranch] = deque()
    newest: list[TreeBranch] = []  # on each level
    for entry in entries:
        name = entry if isinstance(entry, str) else entry.identifier
        parts = name.split("/") if isinstance(entry, ObjectInfo) else name[:-1].split("/")
        level = len(parts) - 1
        _end(newest[level + 1 :])
        del newest[level + 1 :]
        if level < len(newest):
            newest.pop().last = False
        branch = TreeBranch(parts[-1] + "/" * isinstance(entry, str), tuple(newest))
        newest.append(branch)
        waiting.append(branch)
        while waiting and (waiting[0].is_settled() or len(waiting) > MOST_HELD):
            waiting[0].settle()
            yield waiting.popleft()
    _end(newest)
    yield from waiting


def _end(branches: Iterable[TreeBranch]) -> None:
    """Mark the branches as the last of their levels, unless they were drawn already."""
    for branch in branches:
        if branch.last is None:
            branch.last = True
