"""Opens the locations that a command is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import click

from storage_backend.base import StorageBackend
from storage_backend.config import open_storage
from storage_backend.defensive import capabilities_of, location_of
from storage_backend.errors import ConfigurationError, NotAFileError
from storage_backend.info import Capability
from storage_backend.location_parser import Url, has_password, parse_location, split_location
from storage_backend.url_escaping import unquoted


def place_at(location: str, *, create: bool = False) -> StorageBackend:
    """The backend at *location*.

    Raises:
        click.UsageError: the location is wrong.
        NotFoundError: there is no such place.
    """
    if has_password(location):
        raise click.UsageError(
            "a password in a location is seen by all who list processes; use the environment or a file that the client "
            "reads (PGPASSWORD and ~/.pgpass, AWS_SECRET_ACCESS_KEY and ~/.aws, an SSH key or agent)"
        )
    try:
        return open_storage(location, create=create)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error


def object_at(location: str, *, create: bool = False) -> tuple[StorageBackend, str]:
    """The backend and the identifier of the object at *location*.

    Raises:
        click.UsageError: the location is wrong, or names no object.
        NotFoundError: there is no such place.
    """
    base, identifier = _split(location)
    return place_at(base, create=create), identifier


@contextmanager
def source_at(location: str) -> Iterator[tuple[StorageBackend, str]]:
    """As `object_at`, for an object to be used; the backend is closed at the end.

    Raises:
        NotAFileError: of the body's errors, those that come of a folder, or a prefix, where an object should be.
    """
    with SourceObjects() as sources, sources.at(location) as found:
        yield found


class SourceObjects:
    """Opens many objects one after the other. Consecutive objects of one place share a backend."""

    def __init__(self) -> None:
        self._base: str | None = None
        self._place = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._place.close()

    @contextmanager
    def at(self, location: str) -> Iterator[tuple[StorageBackend, str]]:
        """As `source_at`."""
        base, identifier = _split(location)
        if base != self._base:
            self._place.close()
            self._base = None
            self._storage = self._place.enter_context(place_at(base))
            self._base = base
        storage = self._storage
        try:
            yield storage, identifier
        except (FileNotFoundError, IsADirectoryError) as error:
            if not _is_folder(storage, identifier):
                raise
            raise NotAFileError(
                f"{location!r} is a folder, not an object; {_instead()}",
                identifier=identifier,
                backend=location_of(storage),
            ) from error


def _split(location: str) -> tuple[str, str]:
    try:
        return split_location(location)
    except ConfigurationError as error:
        hint = f"; {_instead()}" if names_a_place(location) else ""
        raise click.UsageError(f"{error}{hint}") from error


def _is_folder(storage: StorageBackend, identifier: str) -> bool:
    """Whether *identifier* names a directory or a prefix. Costs a request: for use after a failure."""
    with suppress(OSError):
        try:
            storage.stat(identifier)
        except IsADirectoryError:
            # Of a device or a pipe that is said, too.
            return not location_of(storage).startswith("file:") or Path(storage.get_path(identifier)).is_dir()
        except FileNotFoundError:
            flat = Capability.DIRECTORIES not in capabilities_of(storage)
            return flat and next(iter(storage.scan(f"{identifier}/")), None) is not None
    return False


_INSTEAD = {"cp": "'sync' copies", "mv": "'migrate --delete-source' moves", "stat": "'ls -l' shows"}


def _instead() -> str:
    """The advice of the running command for a folder."""
    context = click.get_current_context()
    name = str(context.info_name)
    if any(parameter.name == "recursive" for parameter in context.command.params):
        return f"'{name} -r' takes all that is in it, 'ls' shows it"
    verb = _INSTEAD.get(name, "'ls' shows")
    return f"{verb} what is in it"


@contextmanager
def destination_at(location: str, name: str | None) -> Iterator[tuple[StorageBackend, str]]:
    """As `source_at`, for an object to be written; if *location* is a place, *name* is the object's name in it.

    Raises:
        click.UsageError: the location is wrong, or a place and there is no name.
        NotAFileError: of the body's errors, those that come of a folder where the object should be.
    """
    if name is not None and (names_a_place(location) or _ends_in_slash(location)):
        storage, identifier = place_at(location, create=True), name
    else:
        storage, identifier = object_at(location, create=True)
    with storage:
        try:
            yield storage, identifier
        except (FileExistsError, IsADirectoryError) as error:
            if not _is_folder(storage, identifier):
                raise
            raise NotAFileError(
                f'{location!r}: {identifier!r} is a folder; to store in it, end the location with "/"',
                identifier=identifier,
                backend=location_of(storage),
            ) from error


def names_a_place(location: str) -> bool:
    """Whether *location* is a directory that exists, or a URL that names no object.

    What follows a bucket or a server is an object, unless it ends in "/".

    Raises:
        click.UsageError: the location is wrong.
    """
    path = local_path(location)
    if path is not None:
        return path.is_dir()
    parsed = _parsed(location)
    assert isinstance(parsed, Url)
    if parsed.scheme == "file" and parsed.fragment is None:
        return Path(unquoted(parsed.path)).is_dir()
    if parsed.scheme in {"s3", "ssh"} and parsed.fragment is None:
        return parsed.path in {"", "/", "/~"} or parsed.path.endswith("/")
    return parsed.fragment is None


def _ends_in_slash(location: str) -> bool:
    """Whether the path, or the name in a URL, ends in a slash."""
    parsed = _parsed(location)
    if isinstance(parsed, str):
        return parsed.endswith("/")
    return (parsed.path if parsed.fragment is None else parsed.fragment).endswith("/")


def names_either(location: str) -> bool:
    """Whether *location* may name an object as well as all that is beneath it: by a fragment, or by a key or path.

    Raises:
        click.UsageError: the location is wrong.
    """
    parsed = _parsed(location)
    if not isinstance(parsed, Url):
        return False
    return bool(parsed.fragment) or (parsed.scheme in {"s3", "ssh"} and not names_a_place(location))


def has_directories(location: str) -> bool:
    """Whether *location* is on a server that has directories."""
    parsed = _parsed(location)
    return isinstance(parsed, Url) and parsed.scheme == "ssh"


def local_path(location: str) -> Path | None:
    """The path of a location on the local disk; None for any other location.

    Raises:
        click.UsageError: the location is wrong.
    """
    parsed = _parsed(location)
    if isinstance(parsed, str):
        return Path(parsed)
    if parsed.scheme == "file" and parsed.fragment is None and parsed.cache is None:
        return Path(unquoted(parsed.path))
    return None


def _parsed(location: str) -> str | Url:
    try:
        return parse_location(location)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
