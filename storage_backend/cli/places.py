"""The locations that a command is given, opened."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import click

from storage_backend.base import StorageBackend
from storage_backend.config import Url, has_password, open_storage, parse_location, split_location
from storage_backend.errors import ConfigurationError


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
    try:
        base, identifier = split_location(location)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    return place_at(base, create=create), identifier


def destination_at(location: str, name: str | None) -> tuple[StorageBackend, str]:
    """As `object_at`, for an object to be written; if *location* is a place, *name* is the object's name in it.

    Raises:
        click.UsageError: the location is wrong, or a place and there is no name.
    """
    if name is not None and (names_a_place(location) or location.endswith("/")):
        return place_at(location, create=True), name
    return object_at(location, create=True)


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
        return Path(unquote(parsed.path, errors="surrogateescape")).is_dir()
    if parsed.scheme in {"s3", "ssh"} and parsed.fragment is None:
        return parsed.path in {"", "/", "/~"} or parsed.path.endswith("/")
    return parsed.fragment is None


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
    """Whether *location* is one where a name is either an object's or a directory's, on a server."""
    parsed = _parsed(location)
    return isinstance(parsed, Url) and parsed.scheme == "ssh"


def local_path(location: str) -> Path | None:
    """The path of a location on the local disk; None of any other, and of what is in it.

    Raises:
        click.UsageError: the location is wrong.
    """
    parsed = _parsed(location)
    if isinstance(parsed, str):
        return Path(parsed)
    if parsed.scheme == "file" and parsed.fragment is None and parsed.cache is None:
        return Path(unquote(parsed.path, errors="surrogateescape"))
    return None


def _parsed(location: str) -> str | Url:
    try:
        return parse_location(location)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
