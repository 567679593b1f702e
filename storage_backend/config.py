"""open_storage: opens the backend at a location."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import cast

from storage_backend import url_escaping
from storage_backend.base import StorageBackend
from storage_backend.errors import ConfigurationError
from storage_backend.location_parser import CACHE_NUMBERS, CACHE_TEXTS, CACHED, Url, parse_location, redacted
from storage_backend.paths import cache_directory
from storage_backend.schemes import SCHEMES, Arguments

ENTRY_POINTS = "storage_backend.backends"  # group: scheme -> callable(url, *, create) -> StorageBackend


def open_storage(location: str | os.PathLike[str], *, create: bool = False) -> StorageBackend:
    """The backend at *location*; how names are spelled in one is in `storage_backend.url_escaping`.

    Args:
        location: one of

            - a path, absolute or relative, taken literally ("%", "#" and "?" are ordinary) but for a "~" or "~user" at its
              beginning, which is that home directory, as of every path in a location; so is any PathLike;
            - `file:///absolute/path`, percent-encoded;
            - `sqlite:///relative.db`, `sqlite:////absolute/path.db`, `sqlite:///~/beneath/home.db`;
            - `postgresql://user@host:port/database`, with the parameters of libpq;
            - `s3://bucket/prefix?region=...&endpoint_url=...&profile=...`, with those parameters of S3Storage that are
              no secrets;
            - `ssh://user@host:22,other.example:2222/~/folder?key_filename=...&host_key_policy=...`, with the keys of SSHConfig;
              several hosts are endpoints of one server, "/~/" is the home directory, "//" or "/" the server's root. Without
              `ssh_config_file` in it, ~/.ssh/config is read, as ssh does, and without a user this one's name is taken;
            - `memory:`, an empty store of its own each time;
            - `cached+` before any of these URLs: a CachedStorage over it, with `cache_dir` (without it, a directory of the user's),
              `max_mb`, `ttl`, `stale_if_error` (seconds) and `cache_engine` among the parameters;
            - a URL of a scheme that an entry point in the group `storage_backend.backends` names.

            A URL may end in `#prefix`, percent-encoded: only what is beneath it (see PrefixedStorage). The `location`
            of a backend, where it is a URL, opens the same place again.
        create: the first write makes the directory, database or bucket if it is missing, and until then it is empty. Otherwise
            a missing one is an error, so that a mistyped source does not come to be.

    Raises:
        ConfigurationError: unknown scheme or parameter, or a malformed location.
        NotFoundError: there is no such place; from here or from the first use.
        MissingClientError: the backend's client library is not installed.
    """
    place = parse_location(location)
    if isinstance(place, str):
        return _load("storage_backend.backends.local:LocalStorage")(
            place, create_if_missing="late" if create else False
        )
    backend = _opened(place, create)
    if place.cache is not None:
        backend = _cached(backend, place.cache)
    if place.fragment is None:
        return backend
    return _load("storage_backend.wrappers.prefixed:PrefixedStorage")(
        backend, url_escaping.unquoted(place.fragment)
    )


def _cached(backend: StorageBackend, parameters: Mapping[str, str]) -> StorageBackend:
    arguments: Arguments = {"cache_dir": cache_directory()} if "cache_dir" not in parameters else {}
    for name, text in parameters.items():
        if name in CACHE_TEXTS:
            arguments[CACHE_TEXTS[name]] = text
        else:
            try:
                arguments[CACHE_NUMBERS[name]] = float(text)
            except ValueError:
                raise ConfigurationError(f"{name}: {text!r} is not a number", parameter=name) from None
    try:
        return _load("storage_backend.wrappers.cached:CachedStorage")(backend, **arguments)
    except ConfigurationError as error:
        # It knows them by its own names.
        for name, own in (*CACHE_TEXTS.items(), *CACHE_NUMBERS.items()):
            if own == error.parameter:
                reason = str(error).removeprefix(f"{own}: ")
                raise ConfigurationError(f"{name}: {reason}", parameter=name) from error
        raise


def _opened(url: Url, create: bool) -> StorageBackend:
    """The backend of *url*, without its fragment."""
    scheme = SCHEMES.get(url.scheme)
    if scheme is not None:
        return _load(scheme.backend)(**scheme.arguments(url, create))
    # Reading the metadata of all that is installed takes milliseconds; the common schemes need none of it.
    from importlib.metadata import entry_points

    plugins = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if url.scheme in plugins:
        return cast(StorageBackend, plugins[url.scheme].load()(url.text, create=create))
    known = sorted({*SCHEMES, *plugins})
    wrapper, plus, inner = url.scheme.rpartition("+")
    close = difflib.get_close_matches(inner, known, 1)
    near = f"{CACHED if plus and 'cached'.startswith(wrapper[:3]) else ''}{close[0]}" if close else ""
    raise ConfigurationError(
        f"unknown scheme {url.scheme!r} in {redacted(url.text)!r}; {f'did you mean {near!r}? ' if near else ''}"
        f'Known: {", ".join(known)}, "{CACHED}" before any of them, and plain paths',
        parameter="location",
    )


def _load(name: str) -> Callable[..., StorageBackend]:
    """The class that "module:Class" names."""
    module, _, kind = name.partition(":")
    return cast("Callable[..., StorageBackend]", getattr(import_module(module), kind))
