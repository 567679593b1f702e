"""Opens the locations that are arguments of a command."""

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


def backend_at(location: str, *, create: bool = False) -> StorageBackend:
    """Open the backend at *location*.

    Raises:
        click.UsageError: the location is malformed.
        NotFoundError: it does not exist.
    """
    if has_password(location):
        raise click.UsageError(
            "other users can see a password in a location in the list of processes; use the environment or a file that the client "
            "reads (PGPASSWORD and ~/.pgpass, AWS_SECRET_ACCESS_KEY and ~/.aws, an SSH key or agent)"
        )
    try:
        return open_storage(location, create=create)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error


def object_at(location: str, *, create: bool = False) -> tuple[StorageBackend, str]:
    """Open the backend of the object at *location*. Returns the identifier, too.

    Raises:
        click.UsageError: the location is malformed, or does not name an object.
        NotFoundError: the backend does not exist.
    """
    base, identifier = _split(location)
    return backend_at(base, create=create), identifier


@contextmanager
def source_at(location: str) -> Iterator[tuple[StorageBackend, str]]:
    """As `object_at`, for an object that the body uses; then close the backend.

    Raises:
        NotAFileError: the body failed because *location* is a folder or a prefix.
    """
    with SourceObjects() as sources, sources.at(location) as found:
        yield found


class SourceObjects:
    """Opens several objects one after the other. Consecutive ones at the same location share a backend."""

    def __init__(self) -> None:
        self._base: str | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @contextmanager
    def at(self, location: str) -> Iterator[tuple[StorageBackend, str]]:
        """As `source_at`."""
        base, identifier = _split(location)
        if base != self._base:
            self._stack.close()
            self._base = None
            self._storage = self._stack.enter_context(backend_at(base))
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
        hint = f"; {_instead()}" if names_backend(location) else ""
        raise click.UsageError(f"{error}{hint}") from error


def _is_folder(storage: StorageBackend, identifier: str) -> bool:
    """Whether *identifier* names a directory or a prefix. It sends requests: for use after a failure."""
    with suppress(OSError):
        try:
            storage.stat(identifier)
        except IsADirectoryError:
            # A device or a pipe raises this, too.
            return not location_of(storage).startswith("file:") or Path(storage.get_path(identifier)).is_dir()
        except FileNotFoundError:
            flat = Capability.DIRECTORIES not in capabilities_of(storage)
            return flat and next(iter(storage.scan(f"{identifier}/")), None) is not None
    return False


_INSTEAD = {"cp": "'sync' copies", "mv": "'migrate --delete-source' moves", "stat": "'ls -l' shows"}


def _instead() -> str:
    """Advice for a folder, depending on the command."""
    context = click.get_current_context()
    name = str(context.info_name)
    if any(parameter.name == "recursive" for parameter in context.command.params):
        return f"'{name} -r' takes all objects in it, 'ls' shows them"
    verb = _INSTEAD.get(name, "'ls' shows")
    return f"{verb} the objects in it"


@contextmanager
def destination_at(location: str, name: str | None) -> Iterator[tuple[StorageBackend, str]]:
    """As `source_at`, for an object that the body writes. If *location* names no object, the object is called *name*.

    Raises:
        click.UsageError: the location is malformed, or names no object and *name* is None.
        NotAFileError: the body failed because a folder has the object's name.
    """
    if name is not None and (names_backend(location) or _ends_in_slash(location)):
        storage, identifier = backend_at(location, create=True), name
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


def names_backend(location: str) -> bool:
    """Whether *location* is an existing directory, or a URL that names no object.

    The path after a bucket or a server names an object, unless it ends in "/".

    Raises:
        click.UsageError: the location is malformed.
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


def is_object_or_prefix(location: str) -> bool:
    """Whether *location* may name an object or a prefix: by a fragment, a key of S3, or a path of SSH.

    Raises:
        click.UsageError: the location is malformed.
    """
    parsed = _parsed(location)
    if not isinstance(parsed, Url):
        return False
    return bool(parsed.fragment) or (parsed.scheme in {"s3", "ssh"} and not names_backend(location))


def has_directories(location: str) -> bool:
    """Whether *location* is on an SSH server, which has directories."""
    parsed = _parsed(location)
    return isinstance(parsed, Url) and parsed.scheme == "ssh"


def local_path(location: str) -> Path | None:
    """The path of a local location; None for any other.

    Raises:
        click.UsageError: the location is malformed.
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
