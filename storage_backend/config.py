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
from storage_backend.schemes import SCHEMES, Arguments, local_arguments

ENTRY_POINTS = "storage_backend.backends"  # group: scheme -> callable(url, *, create) -> StorageBackend


def open_storage(location: str | os.PathLike[str], *, create: bool = False) -> StorageBackend:
    """Open the backend at *location*. `storage_backend.url_escaping` says how names are written in URLs.

    Args:
        location: one of

            - a path, absolute or relative, or any PathLike: literal ("%", "#" and "?" are ordinary characters), but a "~" or
              "~user" at the beginning is that home directory, as in every path of a location;
            - `file:///absolute/path`, percent-encoded;
            - `sqlite:///relative.db`, `sqlite:////absolute/path.db`, `sqlite:///~/beneath/home.db`;
            - `postgresql://user@host:port/database`, with the parameters of libpq;
            - `s3://bucket/prefix?region=...&endpoint_url=...&profile=...`, with the parameters of S3Storage that are
              not secret;
            - `ssh://user@host:22,other.example:2222/~/folder?key_filename=...&host_key_policy=...`, with the keys of SSHConfig;
              several hosts are endpoints of one server, "/~/" is the home directory, "//" or "/" the server's root. Without
              `ssh_config_file`, ~/.ssh/config is read, as ssh does; without a user, the name of the current user is used;
            - `memory:`, a new empty store each time;
            - `cached+` before any of these URLs: a CachedStorage around it, with the parameters `cache_dir` (default: a directory in
              the user's cache directory), `max_mb`, `ttl`, `stale_if_error` (seconds) and `cache_engine`;
            - a URL whose scheme is the name of an entry point in the group `storage_backend.backends`.

            A URL may end in `#prefix`, percent-encoded: the backend then shows only the objects with that prefix (see
            PrefixedStorage). If a backend's `location` is a URL, it opens the same store again.
        create: let the first write create a missing directory, database or bucket; until then it is empty. Otherwise a missing
            one is an error, so that a mistyped source is not created.

    Raises:
        ConfigurationError: unknown scheme or parameter, or a malformed location.
        NotFoundError: it does not exist; raised here or by the first operation.
        MissingClientError: the backend's client library is not installed.
    """
    parsed = parse_location(location)
    if isinstance(parsed, str):
        return _load(SCHEMES["file"].backend)(**local_arguments(parsed, create))
    backend = _opened(parsed, create)
    if parsed.cache is not None:
        backend = _cached(backend, parsed.cache)
    if parsed.fragment is None:
        return backend
    return _load("storage_backend.wrappers.prefixed:PrefixedStorage")(
        backend, url_escaping.unquoted(parsed.fragment)
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
        # CachedStorage names its own parameter; the message must name the URL's.
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
    # Imported late: reading the metadata of all installed packages takes milliseconds, and only plugins need it.
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
    """Import the class "module:Class"."""
    module, _, kind = name.partition(":")
    return cast("Callable[..., StorageBackend]", getattr(import_module(module), kind))
