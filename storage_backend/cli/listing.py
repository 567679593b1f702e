"""ls, stat, checksum: what there is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import click

from storage_backend.base import StorageBackend, info_of, location_of
from storage_backend.cli.output import Lines, Tally, common, complain, record_of
from storage_backend.cli.places import (
    has_directories,
    names_a_place,
    names_either,
    object_at,
    place_at,
    source_at,
)
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
    with ExitStack() as stack:
        yield _entries(stack, location, recursive)


def _entries(stack: ExitStack, location: str, recursive: bool) -> Iterator[ObjectInfo | str]:
    either = names_either(location)
    if either and has_directories(location):
        found = _in_parent(stack, location, recursive)
        if found is not None:
            return found
        either = False
    if either or names_a_place(location) or has_directories(location):
        found = _beneath(stack.enter_context(place_at(location)), recursive)
        if found is not None or not either:
            return found or iter(())
    storage, identifier = object_at(location)
    stack.enter_context(storage)
    return iter([info_of(storage.stat(identifier), identifier)])


def _in_parent(stack: ExitStack, location: str, recursive: bool) -> Iterator[ObjectInfo | str] | None:
    """What there is at *location*, over one connection to the directory that it is in; None if that does not tell.

    It does not tell what is in a directory that is empty, or behind a link.
    """
    storage, identifier = object_at(location)
    stack.enter_context(storage)
    try:
        return iter([info_of(storage.stat(identifier), identifier)])
    except IsADirectoryError:
        from storage_backend.wrappers.prefixed import PrefixedStorage

        return _beneath(PrefixedStorage(storage, identifier), recursive)


def _beneath(storage: StorageBackend, recursive: bool) -> Iterator[ObjectInfo | str] | None:
    """The entries of a place; None if there are none."""
    entries: Iterator[ObjectInfo | str] = iter(storage.scan() if recursive else storage._scan_level())
    first = next(entries, None)
    return None if first is None else itertools.chain([first], entries)


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
            with source_at(location) as (storage, identifier):
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

    def show(storage: StorageBackend, identifier: str, name: str) -> None:
        digest = storage.checksum(identifier, algorithm)
        if as_json:
            lines.record({"name": name, "algorithm": algorithm, "digest": digest})
            return
        # As coreutils do, so that a line is a line ("cksum output modes", GNU Coreutils).
        safe = name.replace("\\", r"\\").replace("\n", r"\n").replace("\r", r"\r")
        lines.text(f"{'' if safe == name else chr(92)}{digest}  {safe}")

    for location in locations:
        with tally.each():
            if not recursive:
                with source_at(location) as (storage, identifier):
                    show(storage, identifier, location)
                continue
            with place_at(location) as storage:
                found = _beneath(storage, recursive=True)
                if found is None and not quiet:
                    complain(f"{location_of(storage)} holds no objects")
                for info in found or ():
                    assert isinstance(info, ObjectInfo)
                    with tally.each():
                        show(storage, info.identifier, info.identifier)
    return tally.code
