"""open_storage: a location, as a person writes it, becomes a backend."""

from __future__ import annotations

import difflib
import getpass
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias, cast

from storage_backend import locations
from storage_backend.base import StorageBackend
from storage_backend.errors import ConfigurationError
from storage_backend.paths import cache_directory, expanded

ENTRY_POINTS = "storage_backend.backends"  # group: scheme -> callable(url, *, create) -> StorageBackend

# One letter is a Windows drive, not a scheme (RFC 3986 would allow it).
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//)?")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def open_storage(location: str | os.PathLike[str], *, create: bool = False) -> StorageBackend:
    """The backend at *location*; how names are spelled in one is in `storage_backend.locations`.

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
        backend, locations.unquoted(place.fragment)
    )


def split_location(location: str | os.PathLike[str]) -> tuple[str, str]:
    """The location of one object as that of its backend and its identifier there.

    Of a path, and of a `file:` or `ssh:` URL without a fragment, the identifier is the last component, of an `s3:` URL the whole key;
    of any other URL it is the fragment: `sqlite:///file.db#identifier`, percent-encoded.

    Raises:
        ConfigurationError: it names no object.
    """
    place = parse_location(location)
    if isinstance(place, Url) and place.cache is not None:
        base, name = split_location(place.without_cache())
        return _with_cache(base, place.cache), name
    if isinstance(place, str):
        parent, name = os.path.split(place)
        base = _as_path(parent or ".")
    elif place.fragment is not None:
        base, name = place.text, locations.unquoted(place.fragment)
    elif place.scheme == "file":
        base, _, name = place.text.rpartition("/")
        base, name = f"{base}/", locations.unquoted(name)
    elif place.scheme == "ssh":
        _, query_mark, query = place.text.partition("?")
        above, _, name = place.path.rpartition("/")
        # What is in the root directory has nothing but "/" above it.
        name = "" if place.path == "/~" else locations.unquoted(name)
        base = f"ssh://{place.authority}{above or '/'}{query_mark}{query}"
    elif place.scheme == "s3":
        _, query_mark, query = place.text.partition("?")
        # A key that ends in "/" is a place.
        name = "" if place.path.endswith("/") else locations.unquoted(place.path[1:])
        base = f"s3://{place.authority}{query_mark}{query}"
    elif place.scheme == "memory" and place.authority + place.path:
        base, name = "memory:", locations.unquoted(place.authority + place.path)
    else:
        raise ConfigurationError(
            f'{redacted(place.text)} names no object; add "#" and its identifier', parameter="location"
        )
    if name in {"", ".", ".."}:
        raise ConfigurationError(
            f"{_text(location)!r} names a directory, not an object", parameter="location"
        )
    return base, name


def locations_in(location: str | os.PathLike[str]) -> Callable[[str], str]:
    """What gives the location of each object in the place at *location*, by its identifier; the inverse of `split_location`.

    Raises:
        ConfigurationError: the location is malformed.
    """
    place = parse_location(location)
    if isinstance(place, str):
        # A Path would drop "./", which may tell it from a URL.
        above = os.path.join(place, "")  # noqa: PTH118
        return lambda identifier: _as_path(above + identifier)
    rest, _, fragment = _text(location).partition("#")
    query = ""
    if place.fragment is not None or place.scheme not in {"file", "s3", "ssh"}:
        before = f"{rest}#{fragment.removesuffix('/')}/" if fragment else f"{rest}#"
    else:
        hierarchy, mark, query = rest.partition("?")
        if place.scheme == "ssh" and not place.path:
            hierarchy += "/~"
        before = f"{hierarchy.removesuffix('/')}/"
        query = mark + query
    in_root = place.scheme == "ssh" and place.path == "/"

    def located(identifier: str) -> str:
        name = locations.quoted(identifier)
        if in_root and (name == "~" or name.startswith("~/")):
            name = f"%7E{name[1:]}"  # "~" alone is the home directory
        return f"{before}{name}{query}"

    return located


def _as_path(path: str) -> str:
    """*path* as a location that is not taken for anything else."""
    with suppress(ConfigurationError):
        if parse_location(path) == path:
            return path
    return f"./{path}"


def redacted(location: str) -> str:
    """*location* without its password, for messages."""
    # In an ssh URL ports stand before the path, which may have an "@"; elsewhere a careless password may have a "/".
    inside = r"[^/@]*" if re.match(r"(cached\+)?ssh://", location, re.IGNORECASE) else r".*"
    return re.sub(
        rf"\A([a-z][a-z0-9+.-]*://[^/:@]*):{inside}@", r"\1:***@", location, flags=re.DOTALL | re.IGNORECASE
    )


def has_password(location: str) -> bool:
    """Whether there is a password in *location*."""
    return redacted(location) != location


@dataclass(frozen=True)
class Url:
    """The parts of a URL, still percent-encoded.

    Attributes:
        text: all of it, but for the fragment.
        scheme: in lower case.
        authority: between "//" and the next "/".
        path: from that "/" on.
        parameters: those after "?".
        fragment: what follows "#"; None without one.
        cache: of a URL that began with `cached+`, which none of the above has, the parameters that are the cache's.
    """

    text: str
    scheme: str
    authority: str
    path: str
    parameters: Mapping[str, str]
    fragment: str | None
    cache: Mapping[str, str] | None = None

    def without_cache(self) -> str:
        """The location of what is cached."""
        return self.text if self.fragment is None else f"{self.text}#{self.fragment}"


Arguments: TypeAlias = dict[str, Any]


def parse_location(location: str | os.PathLike[str]) -> str | Url:
    """*location* taken apart: a literal path as a str, or a Url.

    Raises:
        ConfigurationError: it is malformed.
    """
    text = _text(location)
    if not text:
        raise ConfigurationError("the location is empty", parameter="location")
    if "\0" in text:
        raise ConfigurationError(f"{text!r} has a NUL", parameter="location")
    if not isinstance(location, str):
        return expanded(text)
    if _DRIVE.match(text):
        raise ConfigurationError(
            f'{text!r} looks like a path on Windows, where local disks are not supported; write "./{text}" for a file '
            "of that name",
            parameter="location",
        )
    if text[: len(_CACHED)].lower() == _CACHED:
        return _cached_url(text)
    found = _SCHEME.match(text)
    scheme = found[1].lower() if found else ""
    if found is None or not (found[2] or scheme in SCHEMES):
        return expanded(text)
    if not found[2] and scheme != "memory":
        raise ConfigurationError(
            f'a URL has "//" after "{scheme}:", as {SCHEMES[scheme].example}; a path of that name is written with "./" '
            "before it",
            parameter="location",
        )
    return _url(text, scheme, found.end())


# S3's access points, whose names have a "/" ("Access points", Amazon S3 User Guide).
_ARN = re.compile(r"arn:[^/:]+:s3[^/:]*:[^/:]*:[^/:]*:(accesspoint|outpost/[^/?]+/accesspoint)/[^/?]+")


def _url(text: str, scheme: str, end: int) -> Url:
    """The parts of *text*, whose scheme ends at *end*.

    Raises:
        ConfigurationError: it may be read in two ways.
    """
    rest, hash_sign, fragment = text.partition("#")
    hierarchy, question_mark, query = rest[end:].partition("?")
    arn = _ARN.match(hierarchy) if scheme == "s3" else None
    authority, slash, path = hierarchy.partition("/")
    if arn is not None:
        authority, (slash, path) = arn[0], (hierarchy[arn.end() : arn.end() + 1], hierarchy[arn.end() + 1 :])
    start = redacted(rest[:end] + hierarchy)
    if scheme in SCHEMES and scheme != "postgresql":  # a careless password may have any character
        locations.check_escapes(start)
        if question_mark and "=" not in query:
            raise ConfigurationError(
                f'no parameter, as name=value, follows the "?"; if it is part of the name, write {f"{start}%3F{query}"!r}',
                parameter="location",
            )
        for piece in query.split("&"):
            locations.check_escapes(piece, f"parameter {piece.partition('=')[0]!r}")
        if hash_sign:
            locations.check_escapes(fragment)
        if "#" in fragment:
            raise ConfigurationError(
                'there are two "#" in the URL; the one that is part of a name is written %23',
                parameter="location",
            )
        whole = f"{slash}{path}#{fragment}"
        if hash_sign and scheme in {"file", "sqlite"} and _is_there(whole[scheme == "sqlite" :]):
            raise ConfigurationError(
                f'there is a file whose name has this "#"; write {f"{start}%23{fragment}"!r} for it',
                parameter="location",
            )
        if hash_sign and locations.is_name(rest):
            raise ConfigurationError(
                f'"#" stands behind a name; if it is part of it, write {f"{start}%23{fragment}"!r}; what is in the place '
                f"{start!r} is {f'{start}/#{fragment}'!r}",
                parameter="location",
            )
    return Url(
        text=rest,
        scheme=scheme,
        authority=authority,
        path=slash + path,
        parameters=locations.parameters_in(query),
        fragment=fragment if hash_sign else None,
    )


def _is_there(path: str) -> bool:
    """Whether there is anything at the path that a part of a URL spells."""
    name = locations.unquoted(path)
    return "\0" not in name and os.path.lexists(expanded(name))


_CACHED = "cached+"
# A parameter of a URL, and the one of CachedStorage that it is.
_CACHE_TEXTS = {"cache_dir": "cache_dir", "cache_engine": "engine"}
_CACHE_NUMBERS = {
    "max_mb": "max_cache_size_mb",
    "ttl": "ttl_seconds",
    "stale_if_error": "stale_if_error",
}


def _cached_url(text: str) -> Url:
    """A URL that begins with `cached+`, with the cache's parameters apart."""
    rest, hash_sign, fragment = text[len(_CACHED) :].partition("#")
    hierarchy, question_mark, query = rest.partition("?")
    pieces = [piece for piece in query.split("&") if piece]
    known = {*_CACHE_TEXTS, *_CACHE_NUMBERS}
    ours = [piece for piece in pieces if locations.unquoted(piece.partition("=")[0]) in known]
    others = [piece for piece in pieces if piece not in ours]
    kept = question_mark + "&".join(others) if others or not ours else ""
    for piece in ours:
        locations.check_escapes(piece, f"parameter {piece.partition('=')[0]!r}")
    inner = hierarchy + kept + hash_sign + fragment
    place = parse_location(inner)
    if isinstance(place, str) or place.cache is not None:
        raise ConfigurationError(
            f'"{_CACHED}" stands before a URL, as cached+s3://bucket/prefix?cache_dir=/tmp/papers',
            parameter="location",
        )
    return replace(place, cache=locations.parameters_in("&".join(ours)))


def _with_cache(location: str, cache: Mapping[str, str]) -> str:
    """The location of a place, in front of which is a cache."""
    if not cache:
        return _CACHED + location
    return f"{_CACHED}{location}{'&' if '?' in location else '?'}{locations.parameters_as_text(dict(cache))}"


def _cached(backend: StorageBackend, parameters: Mapping[str, str]) -> StorageBackend:
    arguments: Arguments = {"cache_dir": cache_directory()} if "cache_dir" not in parameters else {}
    for name, text in parameters.items():
        if name in _CACHE_TEXTS:
            arguments[_CACHE_TEXTS[name]] = text
        else:
            try:
                arguments[_CACHE_NUMBERS[name]] = float(text)
            except ValueError:
                raise ConfigurationError(f"{name}: {text!r} is not a number", parameter=name) from None
    try:
        return _load("storage_backend.wrappers.cached:CachedStorage")(backend, **arguments)
    except ConfigurationError as error:
        # It knows them by its own names.
        for name, own in (*_CACHE_TEXTS.items(), *_CACHE_NUMBERS.items()):
            if own == error.parameter:
                reason = str(error).removeprefix(f"{own}: ")
                raise ConfigurationError(f"{name}: {reason}", parameter=name) from error
        raise


def _text(location: str | os.PathLike[str]) -> str:
    if isinstance(location, str):
        return location
    return os.fsdecode(location)


def _opened(url: Url, create: bool) -> StorageBackend:
    """The backend of *url*, its fragment aside."""
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
    near = f"{_CACHED if plus and 'cached'.startswith(wrapper[:3]) else ''}{close[0]}" if close else ""
    raise ConfigurationError(
        f"unknown scheme {url.scheme!r} in {redacted(url.text)!r}; {f'did you mean {near!r}? ' if near else ''}"
        f'Known: {", ".join(known)}, "{_CACHED}" before any of them, and plain paths',
        parameter="location",
    )


def _load(name: str) -> Callable[..., StorageBackend]:
    """What "module:Class" names."""
    module, _, kind = name.partition(":")
    return cast("Callable[..., StorageBackend]", getattr(import_module(module), kind))


def _check_parameters(url: Url, known: frozenset[str] = frozenset()) -> None:
    """Refuse what is neither the backend's nor, of a URL that began with `cached+`, the cache's."""
    cache = frozenset({*_CACHE_TEXTS, *_CACHE_NUMBERS})
    for name in url.parameters:
        if name in known:
            continue
        near = difflib.get_close_matches(name, sorted(known if url.cache is None else known | cache), 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        takes = f"{url.scheme} takes " + (", ".join(sorted(known)) or 'none (in a path, "?" is %3F)')
        if url.scheme in {"s3", "ssh"}:
            takes += ' (in a name, "?" is %3F)'
        if url.cache is not None:
            takes += f"; the cache takes {', '.join(sorted(cache))}"
        elif name in cache:
            takes += f'; {name} is of a cache, for which "{_CACHED}" stands before the URL'
        raise ConfigurationError(f"unknown parameter {name!r}{hint}; {takes}", parameter=name)


def _file(url: Url, create: bool) -> Arguments:
    _check_parameters(url)
    if url.authority not in {"", "localhost"} or not url.path:
        raise ConfigurationError(
            f"{url.text!r} names no absolute path; write {SCHEMES['file'].example}", parameter="location"
        )
    return {"base_dir": locations.unquoted(url.path), "create_if_missing": "late" if create else False}


def _memory(url: Url, create: bool) -> Arguments:  # noqa: ARG001 - as all of SCHEMES
    _check_parameters(url)
    if url.authority or url.path:
        raise ConfigurationError(
            f'{url.text!r}: nothing follows "memory:" but "#prefix"', parameter="location"
        )
    return {}


def _sqlite(url: Url, create: bool) -> Arguments:
    _check_parameters(url)
    return {"url": url.text, "create_if_missing": create}


def _postgresql(url: Url, create: bool) -> Arguments:
    # An unescaped "#", "/" or "?" in a password cuts the URL short: then what looks like a port is part of the secret.
    hosts = re.sub(r"\[[^]]*]", "", url.authority.rpartition("@")[2])
    if re.search(r":(?!\d*(,|$))", hosts):
        raise ConfigurationError(
            'a port of the postgresql URL is no number; in a password "#", "/", "?" and "@" are percent-encoded',
            parameter="location",
        )
    address = import_module("storage_backend.backends.sql.address")
    # Of these two, the backend says where a password belongs.
    others = {name: text for name, text in url.parameters.items() if name not in {"password", "sslpassword"}}
    _check_parameters(replace(url, parameters=others), address.POSTGRESQL_PARAMETERS)
    return {"url": url.text, "create_if_missing": create}


# The parameters of S3Storage that a URL may have. Secrets are none of them: a URL is seen by all who list processes.
_S3_FLAGS = frozenset({"accelerate", "anonymous", "create_bucket"})
_S3_NUMBERS = frozenset({"max_concurrency", "multipart_chunk_size", "multipart_threshold"})
_S3_TEXTS = frozenset(
    {
        "acl",
        "addressing_style",
        "ca_bundle",
        "checksum",
        "content_type",
        "endpoint_url",
        "profile",
        "region",
        "request_payer",
        "server_side_encryption",
        "sse_kms_key_id",
        "storage_class",
    }
)


def _s3(url: Url, create: bool) -> Arguments:
    if "@" in url.authority:
        raise ConfigurationError(
            "no user and password in an s3 URL: use the environment or a profile", parameter="location"
        )
    bucket = locations.unquoted(url.authority)
    if not bucket:
        raise ConfigurationError(
            f"the s3 URL names no bucket; write {SCHEMES['s3'].example}", parameter="location"
        )
    if "//" in url.path:
        raise ConfigurationError(
            f'{redacted(url.text)!r} has an empty segment between two "/": no object of ours is there',
            parameter="location",
        )
    _check_parameters(url, _S3_FLAGS | _S3_NUMBERS | _S3_TEXTS)
    found: Arguments = {}
    for name, text in url.parameters.items():
        if name in _S3_FLAGS:
            found[name] = _flag(name, text)
        elif name in _S3_NUMBERS:
            found[name] = _number(name, text)
        else:
            found[name] = text
    return {"create_bucket": create} | found | {"bucket": bucket, "prefix": locations.unquoted(url.path)}


_SSH_FLAGS = frozenset({"agent", "non_atomic_overwrite"})
_SSH_SECONDS = frozenset({"connection_timeout", "io_timeout", "keepalive"})
_SSH_NUMBERS = frozenset({"max_connections"})
_SSH_TEXTS = frozenset({"host_key_policy", "key_filename", "known_hosts", "shell", "ssh_config_file"})
_SSH_REFERENCES = frozenset({"passphrase", "password"})
_USER_CONFIG = "~/.ssh/config"


def _ssh(url: Url, create: bool) -> Arguments:
    user, at, hosts = url.authority.rpartition("@")
    if ":" in user:
        raise ConfigurationError(
            "no password in an ssh URL: use a key, the agent, or password=env:NAME", parameter="location"
        )
    if not hosts:
        raise ConfigurationError(
            f"the ssh URL names no host; write {SCHEMES['ssh'].example}", parameter="location"
        )
    _check_parameters(url, _SSH_FLAGS | _SSH_NUMBERS | _SSH_SECONDS | _SSH_TEXTS | _SSH_REFERENCES)
    found: Arguments = {"endpoints": [_endpoint(text) for text in hosts.split(",")]}
    if at:
        found["user"] = locations.unquoted(user)
    for name, text in url.parameters.items():
        if name in _SSH_FLAGS:
            found[name] = _flag(name, text)
        elif name in _SSH_NUMBERS:
            found[name] = _number(name, text)
        elif name in _SSH_SECONDS:
            found[name] = _seconds(name, text)
        elif name in _SSH_REFERENCES and not text.startswith(("env:", "file:")):
            raise ConfigurationError(
                f"{name}: a location is seen by all who list processes; write {name}=env:NAME or {name}=file:PATH",
                parameter=name,
            )
        else:
            found[name] = text
    if "ssh_config_file" not in found and Path(expanded(_USER_CONFIG)).is_file():
        found["ssh_config_file"] = _USER_CONFIG
    path = locations.unquoted(url.path)
    # As it is written: "/%7E" is a directory of that name in the root.
    at_home = url.path in {"", "/~"} or url.path.startswith("/~/")
    base = path[1:] or "~" if at_home else path
    return {"ssh_config": _with_user(found), "remote_base_dir": base, "create_if_missing": create}


def _endpoint(text: str) -> list[str | int]:
    """A host, and its port if it has one; an IPv6 address stands in brackets (RFC 3986)."""
    parts = re.fullmatch(r"(?:\[([^]]*)]|([^:]*))(?::(\d*))?", text)
    if parts is None:
        raise ConfigurationError(
            f"{text!r} is no host and port; write {SCHEMES['ssh'].example}", parameter="location"
        )
    host = locations.unquoted(parts[1] or parts[2] or "")
    return [host, int(parts[3])] if parts[3] else [host]


def _with_user(config: Arguments) -> Arguments:
    """The same with a user: the one given, or the configuration's, or this one."""
    settings = import_module("storage_backend.backends.remote.settings")
    try:
        settings.read_settings(config)
    except ConfigurationError as error:
        if error.parameter != "user" or "user" in config:
            raise
        return {**config, "user": getpass.getuser()}
    return config


def _seconds(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(f"{name}: {text!r} is not a number of seconds", parameter=name) from None


def _flag(name: str, text: str) -> bool:
    if text not in {"true", "false"}:
        raise ConfigurationError(f'{name}: {text!r} is neither "true" nor "false"', parameter=name)
    return text == "true"


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ConfigurationError(f"{name}: {text!r} is not a number", parameter=name)
    return int(text)


@dataclass(frozen=True)
class Scheme:
    """How locations of one scheme are opened.

    Attributes:
        backend: "module:Class".
        arguments: gives the keyword arguments of the class.
        example: for messages.
    """

    backend: str
    arguments: Callable[[Url, bool], Arguments]
    example: str


SCHEMES: Mapping[str, Scheme] = {
    "file": Scheme("storage_backend.backends.local:LocalStorage", _file, "file:///data/papers"),
    "memory": Scheme("storage_backend.backends.memory:MemoryStorage", _memory, "memory:"),
    "sqlite": Scheme("storage_backend.backends.sql:DatabaseStorage", _sqlite, "sqlite:///archive.db"),
    "postgresql": Scheme(
        "storage_backend.backends.sql:DatabaseStorage",
        _postgresql,
        "postgresql://user@host:5432/database",
    ),
    "s3": Scheme("storage_backend.backends.s3:S3Storage", _s3, "s3://bucket/prefix"),
    "ssh": Scheme("storage_backend.backends.remote:RemoteStorage", _ssh, "ssh://user@host:22/~/papers"),
}
