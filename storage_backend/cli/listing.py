"""ls, stat, checksum: list and describe objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import click

from storage_backend.base import StorageBackend
from storage_backend.cli.contents import all_objects, beneath, contents_of
from storage_backend.cli.display import Meter
from storage_backend.cli.operands import SourceObjects, backend_at
from storage_backend.cli.output import Lines, Outcomes, coloured, common, print_error, record_of
from storage_backend.cli.units import shown_size, size_width
from storage_backend.defensive import info_of, location_of
from storage_backend.errors import ConfigurationError
from storage_backend.hooks import hooks_of
from storage_backend.info import ObjectInfo
from storage_backend.streams import new_digest


@click.command(no_args_is_help=True, context_settings={"help_option_names": ["--help"]})
@click.argument("locations", metavar="LOCATION...", nargs=-1, required=True)
@click.option("-l", "--long", is_flag=True, help="Also show size in bytes and time (UTC).")
@click.option("-h", "--human-readable", "human", is_flag=True, help="With -l: sizes as 1.23 MiB.")
@click.option("-R", "--recursive", is_flag=True, help="List recursively.")
@click.option(
    "--sort",
    type=click.Choice(["name", "size", "time"]),
    default="name",
    show_default=True,
    help="name, size (largest first) or time (newest first); entries without a value come last.",
)
@click.option("-r", "--reverse", is_flag=True, help="Reverse the order.")
@click.option("-0", "--null", is_flag=True, help="End names with NUL, for xargs -0.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@coloured
@common
def ls(  # noqa: PLR0917 - click passes them by name
    locations: tuple[str, ...],
    long: bool,
    human: bool,
    recursive: bool,
    sort: str,
    reverse: bool,
    null: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """List objects, one level deep.

    Deeper objects are shown once, as their folder "name/". Names are printed unchanged; on a terminal, names with control characters are
    quoted.

    A listing by name is printed as it arrives. --sort size, --sort time and -r first hold all of it in memory.

    \b
    Examples:
      storage-backend ls ./papers
      storage-backend ls -l -h 'sqlite:///archive.db#2024'
      storage-backend ls -l -R --sort size s3://bucket/papers/ | head
      storage-backend ls -R0 ./papers | xargs -0 -n 1 echo
    """
    del quiet
    lines, outcomes = Lines(null=null), Outcomes()
    write = _as_json if as_json else partial(_in_full, human=human) if long else _by_name
    for number, location in enumerate(locations):
        with outcomes.each(), contents_of(location, all_objects if recursive else _one_level) as contents:
            if len(locations) > 1 and not (as_json or null):
                lines.name(location, before="\n" if number else "", after=":")
            for entry in _in_order(contents.entries, sort, reverse):
                write(lines, entry)
    return outcomes.code


def _one_level(storage: StorageBackend) -> Iterator[ObjectInfo | str]:
    return storage.scan_level()


def _in_order(entries: Iterator[ObjectInfo | str], sort: str, reverse: bool) -> Iterable[ObjectInfo | str]:
    """Sort *entries*, which arrive by name."""
    if sort == "name":
        return reversed(list(entries)) if reverse else entries

    def rank(entry: ObjectInfo | str) -> tuple[bool, float]:
        value: float | None = None
        if isinstance(entry, ObjectInfo) and sort == "size":
            value = entry.size
        elif isinstance(entry, ObjectInfo) and entry.modified is not None:
            value = entry.modified.timestamp()
        return value is None, -(value or 0)

    found = sorted(entries, key=rank)
    return reversed(found) if reverse else found


def _by_name(lines: Lines, entry: ObjectInfo | str) -> None:
    lines.name(entry if isinstance(entry, str) else entry.identifier)


def _in_full(lines: Lines, entry: ObjectInfo | str, *, human: bool) -> None:
    size = time = "-"
    if isinstance(entry, ObjectInfo):
        size = size if entry.size is None else shown_size(entry.size, human=human)
        time = time if entry.modified is None else entry.modified.strftime("%Y-%m-%dT%H:%M:%SZ")
    lines.name(
        entry if isinstance(entry, str) else entry.identifier,
        before=f"{size:>{size_width(human=human)}}  {time:<20}  ",
    )


def _as_json(lines: Lines, entry: ObjectInfo | str) -> None:
    lines.record({"prefix": entry} if isinstance(entry, str) else record_of(entry))


@click.command(no_args_is_help=True)
@click.argument("locations", metavar="LOCATION...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@common
def stat(locations: tuple[str, ...], as_json: bool, quiet: bool) -> int:
    """Show size, time and other properties of objects without reading them.

    \b
    Examples:
      storage-backend stat ./papers/report.pdf
      storage-backend stat --json 'sqlite:///archive.db#2024/report.pdf'
    """
    del quiet
    lines, outcomes = Lines(), Outcomes()
    with SourceObjects() as sources:
        for location in locations:
            with outcomes.each():
                with sources.at(location) as (storage, identifier):
                    record = record_of(info_of(storage.stat(identifier), identifier))
                    record["path"] = storage.get_path(identifier)
                if as_json:
                    lines.record(record)
                    continue
                for name, value in record.items():
                    lines.name(str(value), before=f"{name + ':':<14}")
    return outcomes.code


def _known_algorithm(context: click.Context, option: click.Parameter, value: str) -> str:  # noqa: ARG001 - click's signature
    try:
        new_digest(value)
    except ConfigurationError as error:
        raise click.BadParameter(str(error)) from error
    return value


@click.command(no_args_is_help=True)
@click.argument("locations", metavar="LOCATION...", nargs=-1, required=True)
@click.option(
    "-a",
    "--algorithm",
    default="sha256",
    show_default=True,
    callback=_known_algorithm,
    help="A name of hashlib.",
)
@click.option("-r", "--recursive", is_flag=True, help="All objects beneath each LOCATION.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@common
def checksum(locations: tuple[str, ...], algorithm: str, recursive: bool, as_json: bool, quiet: bool) -> int:
    """Print digests of objects as sha256sum does.

    \b
    Examples:
      storage-backend checksum ./papers/report.pdf
      storage-backend checksum -a md5 'sqlite:///archive.db#report.pdf'
      storage-backend checksum -r sqlite:///archive.db > SHA256SUMS; (cd ./papers && sha256sum -c SHA256SUMS)
    """
    lines, outcomes = Lines(), Outcomes()

    def show(storage: StorageBackend, identifier: str, name: str, meter: Meter) -> None:
        digest = hooks_of(storage).checksum(identifier, algorithm, meter.moved)
        if as_json:
            lines.record({"name": name, "algorithm": algorithm, "digest": digest})
            return
        if lines.quotes:
            lines.name(name, before=f"{digest}  ")
            return
        # Escaped as by coreutils, so that an object has one line ("cksum output modes", GNU Coreutils).
        safe = name.replace("\\", r"\\").replace("\n", r"\n").replace("\r", r"\r")
        lines.text(f"{'' if safe == name else chr(92)}{digest}  {safe}")

    with SourceObjects() as sources:
        for location in locations:
            with outcomes.each():
                if not recursive:
                    with (
                        sources.at(location) as (storage, identifier),
                        Meter(
                            "checksum", storage, quiet=quiet, size=partial(storage.size, identifier)
                        ) as meter,
                    ):
                        show(storage, identifier, location, meter)
                    continue
                with (
                    backend_at(location) as storage,
                    Meter("checksum", storage, quiet=quiet, many=True) as meter,
                ):
                    contents = beneath(storage, all_objects)
                    if contents is None and not quiet:
                        print_error(f"{location_of(storage)} holds no objects")
                    for info in contents.entries if contents is not None else ():
                        with outcomes.each():
                            show(storage, info.identifier, info.identifier, meter)
                            meter.done()
    return outcomes.code
