"""cat, get, put, cp, mv, rm, url: transfer, delete and share single objects, and with -r all objects of a location."""

from __future__ import annotations

import dataclasses
import itertools
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import BinaryIO

import click

from storage_backend import identifiers as names
from storage_backend.base import StorageBackend
from storage_backend.cli.display import STDIN, Meter
from storage_backend.cli.exit_codes import Exit
from storage_backend.cli.operands import SourceObjects, backend_at, destination_at, local_path, source_at
from storage_backend.cli.output import Lines, Outcomes, common
from storage_backend.cli.standard_streams import ignore_output_errors
from storage_backend.cli.transfer import synchronize, synchronize_locations
from storage_backend.defensive import info_of, location_of
from storage_backend.errors import BatchError, Failures, SourceChangedError
from storage_backend.hooks import hooks_of
from storage_backend.info import ObjectInfo
from storage_backend.markers import refuse_one_object
from storage_backend.paths import expanded
from storage_backend.streams import chunks

DELETE_BATCH = 1000  # objects; the limit of one request to S3


@click.command(no_args_is_help=True)
@click.argument("locations", metavar="LOCATION...", nargs=-1, required=True)
@common
def cat(locations: tuple[str, ...], quiet: bool) -> int:
    """Write objects to standard output. LOCATION "-" is standard input.

    Progress is shown if standard output is a file.

    \b
    Examples:
      storage-backend cat ./papers/notes.txt
      storage-backend cat 'sqlite:///archive.db#part-1' 'sqlite:///archive.db#part-2' > whole
    """
    outcomes = Outcomes()
    with SourceObjects() as sources:
        for location in locations:
            with outcomes.each(), ExitStack() as stack:
                if location == "-":
                    _write_to_stdout(sys.stdin.buffer, STDIN, quiet=quiet)
                else:
                    storage, identifier = stack.enter_context(sources.at(location))
                    _write_to_stdout(stack.enter_context(storage.open(identifier)), storage, quiet=quiet)
    return outcomes.code


def _write_to_stdout(reader: BinaryIO, source: StorageBackend | str, *, quiet: bool) -> None:
    """Copy *reader*, which reads from *source*, to standard output.

    Progress is shown only if that is a file: the program at the end of a pipe may use the terminal.
    """
    output = sys.stdout.buffer
    quiet = quiet or not _is_file(output)
    with Meter("cat", quiet=quiet, size=None if quiet else _length(reader)) as meter:
        for chunk in chunks(meter.reader(reader, source)):
            output.write(chunk)


def _is_file(stream: BinaryIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # it has no descriptor or is closed
        return False


def _length(reader: BinaryIO) -> int | None:
    """The number of remaining bytes of *reader*; None if unknown."""
    if reader is sys.stdin.buffer and not _is_file(reader):
        return None
    start = reader.tell()
    end = reader.seek(0, os.SEEK_END)
    reader.seek(start)
    return end - start


@click.command(no_args_is_help=True)
@click.argument("location")
@click.argument("path", required=False)
@click.option("-r", "--recursive", is_flag=True, help="Get all objects at LOCATION into directory PATH.")
@click.option("--json", "as_json", is_flag=True, help="With -r: one event a line, as JSON.")
@common
def get(location: str, path: str | None, recursive: bool, as_json: bool, quiet: bool) -> int:
    """Store an object in a local file. PATH "-" is standard output.

    The file appears complete or not at all. Without PATH, or if PATH is a directory, its name is the last part of the object's name. If
    PATH is a symbolic link, a pipe or a device, it is written through, as by cp. With -r, files with the same size and time are skipped.

    \b
    Examples:
      storage-backend get 'sqlite:///archive.db#2024/report.pdf' report.pdf
      storage-backend get 'sqlite:///archive.db#2024/report.pdf' - | less
      storage-backend get -r 'sqlite:///archive.db#2024' ./2024
    """
    if recursive:
        if path is None or path == "-":
            raise click.UsageError("get -r needs the PATH of a directory")
        with backend_at(location) as source, _directory(path, create=True) as target:
            return synchronize(source, target, quiet=quiet, as_json=as_json)
    with source_at(location) as (storage, identifier):
        if path == "-":
            with storage.open(identifier) as reader:
                _write_to_stdout(reader, storage, quiet=quiet)
            return Exit.DONE
        name = identifier.rpartition("/")[2]
        # Absolute, since an object may be called "~".
        given = Path.cwd() / (name if path is None else expanded(path))
        file = given / name if given.is_dir() or str(path).endswith("/") else given
        with Meter("get", storage, quiet=quiet, size=partial(storage.size, identifier)) as meter:
            hooks_of(storage).download(identifier, file, meter.moved)
    return Exit.DONE


@click.command(no_args_is_help=True)
@click.argument("path")
@click.argument("location")
@click.option("-r", "--recursive", is_flag=True, help="Put all files of directory PATH into LOCATION.")
@click.option("--json", "as_json", is_flag=True, help="With -r: one event a line, as JSON.")
@common
def put(path: str, location: str, recursive: bool, as_json: bool, quiet: bool) -> int:
    """Store a local file as an object. PATH "-" is standard input.

    If LOCATION names no object, the object has the file's name. With -r, objects with the same size and time are skipped.

    \b
    Examples:
      storage-backend put report.pdf 'sqlite:///archive.db#2024/report.pdf'
      pg_dump mydb | storage-backend put - 'sqlite:///archive.db#mydb.sql'
      storage-backend put -r ./2024 'sqlite:///archive.db#2024'
    """
    if recursive:
        if path == "-":
            raise click.UsageError("put -r needs the PATH of a directory")
        with _directory(path) as source, backend_at(location, create=True) as target:
            return synchronize(source, target, quiet=quiet, as_json=as_json)
    if path == "-":
        typed = sys.stdin.isatty()  # a progress display would disturb typing
        with (
            destination_at(location, None) as (storage, identifier),
            Meter("put", storage, quiet=quiet or typed) as meter,
        ):
            storage.write_stream(identifier, meter.reader(sys.stdin.buffer, STDIN))
        return Exit.DONE
    if Path(expanded(path)).is_dir():
        raise click.UsageError(f"{path!r} is a directory; put -r stores all its files")
    facts = Path(expanded(path)).stat()  # fails before the backend is created
    size = facts.st_size if stat.S_ISREG(facts.st_mode) else None
    with (
        destination_at(location, Path(path).name) as (storage, identifier),
        Meter("put", storage, quiet=quiet, size=size) as meter,
    ):
        hooks_of(storage).upload(path, identifier, meter.moved)
    return Exit.DONE


@click.command(no_args_is_help=True)
@click.argument("source")
@click.argument("target")
@click.option("-r", "--recursive", is_flag=True, help="Copy all objects at SOURCE into TARGET.")
@click.option("--json", "as_json", is_flag=True, help="With -r: one event a line, as JSON.")
@common
def cp(source: str, target: str, recursive: bool, as_json: bool, quiet: bool) -> int:
    """Copy an object, verified.

    Within one store, the store itself copies. If TARGET names no object, the object keeps the last part of its name. With -r, objects
    with the same size and time are skipped. (`sync` has more options.)

    \b
    Examples:
      storage-backend cp ./papers/report.pdf 'sqlite:///archive.db#2024/report.pdf'
      storage-backend cp 'sqlite:///archive.db#a' 'sqlite:///archive.db#b'
      storage-backend cp -r 'sqlite:///archive.db#2024' /mnt/backup/2024
    """
    if recursive:
        return synchronize_locations(source, target, quiet=quiet, as_json=as_json)
    with ExitStack() as stack:
        one, source_id, other, target_id = _pair(stack, source, target)
        meter = stack.enter_context(Meter("cp", other, quiet=quiet, size=partial(one.size, source_id)))
        if one is other and local_path(source) is not None and source_id != target_id:
            # Copies like `copy`, but reports progress.
            hooks_of(one).upload(one.get_path(source_id), target_id, meter.moved)
        elif one is other:
            one.copy(source_id, target_id)
        else:
            _copy(one, source_id, other, target_id, meter)
    return Exit.DONE


@click.command(no_args_is_help=True)
@click.argument("source")
@click.argument("target")
@common
def mv(source: str, target: str, quiet: bool) -> int:
    """Move an object.

    Within one store it is renamed; else it is copied, verified, and only then deleted. If TARGET names no object, the object keeps the
    last part of its name. (For many objects, see `migrate --delete-source`.)

    \b
    Examples:
      storage-backend mv 'sqlite:///archive.db#draft' 'sqlite:///archive.db#final'
      storage-backend mv ./papers/report.pdf 'sqlite:///archive.db#2024/'
    """
    with ExitStack() as stack:
        one, source_id, other, target_id = _pair(stack, source, target)
        meter = stack.enter_context(Meter("mv", other, quiet=quiet, size=partial(one.size, source_id)))
        if one is other:
            one.move(source_id, target_id)
            return Exit.DONE
        seen = _copy(one, source_id, other, target_id, meter)
        now = info_of(one.stat(source_id), source_id)
        if (now.size, now.modified, now.etag) != (seen.size, seen.modified, seen.etag):
            raise SourceChangedError(
                f"{source_id!r} changed while it was copied; the source was not deleted", identifier=source_id
            )
        refuse_one_object(one, source_id, other, target_id)
        one.delete(source_id)
    return Exit.DONE


@click.command(no_args_is_help=True)
@click.argument("locations", metavar="LOCATION...", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="Remove all objects at each LOCATION.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@common
def rm(locations: tuple[str, ...], recursive: bool, yes: bool, quiet: bool) -> int:
    """Remove objects.

    With -r, it shows the number of objects and asks.

    \b
    Examples:
      storage-backend rm ./papers/draft.pdf
      storage-backend rm -r 'sqlite:///archive.db#2023'
    """
    ignore_output_errors()
    outcomes = Outcomes()
    with SourceObjects() as sources:
        for location in locations:
            with outcomes.each():
                if recursive:
                    _remove_all(location, yes, quiet)
                    continue
                with sources.at(location) as (storage, identifier):
                    storage.delete(identifier)
    return outcomes.code


def _remove_all(location: str, yes: bool, quiet: bool) -> None:
    """Delete every object at *location*, after confirmation."""
    with backend_at(location) as storage:
        with Meter("rm", storage, quiet=quiet, many=True) as meter:
            count = 0
            for _ in storage.scan():
                count += 1
                meter.done()
        what = f"{count:,} object{'' if count == 1 else 's'} in {location_of(storage)}"
        if count and not yes:
            if not sys.stdin.isatty():
                raise click.UsageError(f"{what} would be removed; without a terminal to ask on, say --yes")
            if not click.confirm(f"remove {what}?", err=True):
                return
        found = (info.identifier for info in storage.scan())
        failures = Failures()
        removed = 0
        with Meter("rm", storage, quiet=quiet, planned=count) as meter:
            for batch in _batches(found):
                try:
                    removed += storage.delete_many(batch)
                except BatchError as error:
                    failures.errors.update(error.failures)
                    removed += len(batch) - len(error.failures)
                meter.done(len(batch))
        if not quiet:
            Lines().text(
                f"removed {removed:,} object{'' if removed == 1 else 's'} from {location_of(storage)}"
            )
        failures.raise_any("remove", location_of(storage))


def _batches(identifiers: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(itertools.islice(identifiers, DELETE_BATCH)):
        yield batch


def _directory(path: str, *, create: bool = False) -> StorageBackend:
    """Open the local directory *path*, even if the path looks like a URL."""
    return backend_at(os.path.join("./", expanded(path)), create=create)  # noqa: PTH118 - "./" would be dropped


def _pair(stack: ExitStack, source: str, target: str) -> tuple[StorageBackend, str, StorageBackend, str]:
    """Open the backends of both objects; the same backend twice if they are in one store."""
    one, source_id = stack.enter_context(source_at(source))
    one.size(source_id)  # fails before the target is created
    other, target_id = stack.enter_context(destination_at(target, source_id.rpartition("/")[2]))
    if location_of(one) == location_of(other):
        return one, source_id, one, target_id
    from_path, to_path = local_path(source), local_path(target)
    if from_path is None or to_path is None:
        return one, source_id, other, target_id
    # Two local directories: in a backend at their common parent, a move is a rename.
    sides = [Path(backend.get_path(name)) for backend, name in ((one, source_id), (other, target_id))]
    above = Path(os.path.commonpath([path.parent for path in sides]))
    source_id, target_id = (str(path.relative_to(above)) for path in sides)
    if not all(names.is_valid(name, surrogates=True) for name in (source_id, target_id)):  # too deep
        return one, sides[0].name, other, sides[1].name
    both = stack.enter_context(backend_at(str(above)))
    return both, source_id, both, target_id


def _copy(
    source: StorageBackend, source_id: str, target: StorageBackend, target_id: str, meter: Meter
) -> ObjectInfo:
    """Copy between two stores, and verify before publishing. Returns the source's info before the copy."""
    seen = info_of(source.stat(source_id), source_id)
    with source.open(source_id) as reader:
        target.write_stream(
            target_id,
            meter.reader(reader, source),
            info=dataclasses.replace(seen, identifier=target_id, etag=None),
            verify=True,
        )
    return seen


@click.command(no_args_is_help=True)
@click.argument("location")
@click.option(
    "--expires-in", default=3600, show_default=True, metavar="SECONDS", help="How long the URL is valid."
)
@common
def url(location: str, expires_in: int, quiet: bool) -> int:
    """Print a temporary URL by which anybody can read an object without credentials.

    \b
    Examples:
      storage-backend url s3://bucket/2024/report.pdf
      storage-backend url s3://bucket/2024/report.pdf --expires-in 60 | xargs curl -o report.pdf
    """
    del quiet
    with source_at(location) as (storage, identifier):
        storage.size(identifier)  # fails for an absent object, whose URL could still be made
        Lines().text(storage.get_url(identifier, expires_in))
    return Exit.DONE
