"""ls, stat, checksum: what there is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import click

from storage_backend.base import StorageBackend, info_of
from storage_backend.cli.display import Meter
from storage_backend.cli.output import Lines, Tally, common, record_of
from storage_backend.cli.places import has_directories, names_a_place, names_either, object_at, place_at
from storage_backend.errors import ConfigurationError
from storage_backend.info import ObjectInfo
from storage_backend.streams import new_digest


@click.command(no_args_is_help=True)
@click.argument("locations", metavar="LOCATION...", nargs=-1, required=True)
@click.option("-l", "--long", is_flag=True, help="With size in bytes and time (UTC).")
@click.option("-R", "--recursive", is_flag=True, help="All levels, not one.")
@click.option("-0", "--null", is_flag=True, help="End names with NUL, for xargs -0.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@common
def ls(  # noqa: PLR0917 - click gives them by name
    locations: tuple[str, ...], long: bool, recursive: bool, null: bool, as_json: bool, quiet: bool
) -> int:
    """List objects, one level deep.

    What is deeper appears once, as "name/". Names are printed as they are; on a terminal, those with control characters are quoted.

    \b
    Examples:
      storage-backend ls ./papers
      storage-backend ls -l 'sqlite:///archive.db#2024'
      storage-backend ls -R0 ./papers | xargs -0 -n 1 echo
    """
    del quiet
    lines, tally = Lines(null=null), Tally()
    write = _as_json if as_json else _in_full if long else _by_name
    for number, location in enumerate(locations):
        with tally.each(), _listed(location, recursive) as entries:
            if len(locations) > 1 and not (as_json or null):
                lines.name(location, before="\n" if number else "", after=":")
            for entry in entries:
                write(lines, entry)
    return tally.code


@contextmanager
def _listed(location: str, recursive: bool) -> Iterator[Iterator[ObjectInfo | str]]:
    """What there is at *location*: the objects of a place, or beneath a prefix; else the one object."""
    either = names_either(location)
    if either and has_directories(location):
        info = _object(location)
        if info is not None:
            yield iter([info])
            return
        either = False
    if either or names_a_place(location) or has_directories(location):
        with place_at(location) as storage:
            entries: Iterator[ObjectInfo | str] = iter(storage.scan() if recursive else storage._scan_level())
            first = next(entries, None)
            if first is not None or not either:
                yield itertools.chain([] if first is None else [first], entries)
                return
    storage, identifier = object_at(location)
    with storage:
        yield iter([info_of(storage.stat(identifier), identifier)])


def _object(location: str) -> ObjectInfo | None:
    """The object at *location*; None if there is none, or a directory."""
    storage, identifier = object_at(location)
    with storage:
        try:
            return info_of(storage.stat(identifier), identifier)
        except (FileNotFoundError, IsADirectoryError):
            return None


def _by_name(lines: Lines, entry: ObjectInfo | str) -> None:
    lines.name(entry if isinstance(entry, str) else entry.identifier)


def _in_full(lines: Lines, entry: ObjectInfo | str) -> None:
    size = time = "-"
    if isinstance(entry, ObjectInfo):
        size = size if entry.size is None else str(entry.size)
        time = time if entry.modified is None else entry.modified.strftime("%Y-%m-%dT%H:%M:%SZ")
    lines.name(entry if isinstance(entry, str) else entry.identifier, before=f"{size:>15}  {time:<20}  ")


def _as_json(lines: Lines, entry: ObjectInfo | str) -> None:
    lines.record({"prefix": entry} if isinstance(entry, str) else record_of(entry))


@click.command(no_args_is_help=True)
@click.argument("locations", metavar="LOCATION...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@common
def stat(locations: tuple[str, ...], as_json: bool, quiet: bool) -> int:
    """Show what is known of objects without reading them.

    \b
    Examples:
      storage-backend stat ./papers/report.pdf
      storage-backend stat --json 'sqlite:///archive.db#2024/report.pdf'
    """
    del quiet
    lines, tally = Lines(), Tally()
    for location in locations:
        with tally.each():
            storage, identifier = object_at(location)
            with storage:
                record = record_of(info_of(storage.stat(identifier), identifier))
                record["path"] = storage.get_path(identifier)
            if as_json:
                lines.record(record)
                continue
            for name, value in record.items():
                lines.name(str(value), before=f"{name + ':':<14}")
    return tally.code


def _known_algorithm(context: click.Context, option: click.Parameter, value: str) -> str:  # noqa: ARG001 - click's
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
    help="As hashlib calls it.",
)
@click.option("-r", "--recursive", is_flag=True, help="Each LOCATION is a place: digest all its objects.")
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
    lines, tally = Lines(), Tally()

    def show(storage: StorageBackend, identifier: str, name: str, meter: Meter) -> None:
        digest = storage._checksum_counted(identifier, algorithm, meter.moved)
        if as_json:
            lines.record({"name": name, "algorithm": algorithm, "digest": digest})
            return
        # As coreutils do, so that a line is a line ("cksum output modes", GNU Coreutils).
        safe = name.replace("\\", r"\\").replace("\n", r"\n").replace("\r", r"\r")
        lines.text(f"{'' if safe == name else chr(92)}{digest}  {safe}")

    for location in locations:
        with tally.each():
            if not recursive:
                storage, identifier = object_at(location)
                with (
                    storage,
                    Meter("checksum", storage, quiet=quiet, size=partial(storage.size, identifier)) as meter,
                ):
                    show(storage, identifier, location, meter)
                continue
            with place_at(location) as storage, Meter("checksum", storage, quiet=quiet, many=True) as meter:
                for info in storage.scan():
                    with tally.each():
                        show(storage, info.identifier, info.identifier, meter)
                        meter.done()
    return tally.code


COMMANDS = (ls, stat, checksum)
