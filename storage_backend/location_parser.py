"""Parses locations (paths and URLs), and composes the locations of single objects."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from storage_backend import url_escaping
from storage_backend.errors import ConfigurationError
from storage_backend.paths import expanded

EXAMPLES: Mapping[str, str] = {
    "file": "file:///data/papers",
    "memory": "memory:",
    "sqlite": "sqlite:///archive.db",
    "postgresql": "postgresql://user@host:5432/database",
    "s3": "s3://bucket/prefix",
    "ssh": "ssh://user@host:22/~/papers",
}
"""An example of each scheme, for messages."""

CACHED = "cached+"
# URL parameter -> parameter of CachedStorage.
CACHE_TEXTS = {"cache_dir": "cache_dir", "cache_engine": "engine"}
CACHE_NUMBERS = {"max_mb": "max_cache_size_mb", "ttl": "ttl_seconds", "stale_if_error": "stale_if_error"}

# One letter is a Windows drive, not a scheme (RFC 3986 would allow it).
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//)?")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


@dataclass(frozen=True)
class Url:
    """The parts of a URL, still percent-encoded.

    Attributes:
        text: the whole URL without its fragment.
        scheme: in lower case.
        authority: between "//" and the next "/".
        path: from that "/" to the "?" or "#".
        parameters: after the "?".
        fragment: after the "#"; None without one.
        cache: the cache's parameters, if the URL began with `cached+`; the other attributes contain neither.
    """

    text: str
    scheme: str
    authority: str
    path: str
    parameters: Mapping[str, str]
    fragment: str | None
    cache: Mapping[str, str] | None = None

    def without_cache(self) -> str:
        """The location of the wrapped backend."""
        return self.text if self.fragment is None else f"{self.text}#{self.fragment}"


def parse_location(location: str | os.PathLike[str]) -> str | Url:
    """Parse *location*: a str is a literal path.

    Raises:
        ConfigurationError: it is malformed.
    """
    text = _text(location)
    if not text:
        raise ConfigurationError("the location is empty", parameter="location")
    if "\0" in text:
        raise ConfigurationError(f"{text!r} contains a NUL", parameter="location")
    if not isinstance(location, str):
        return expanded(text)
    if _DRIVE.match(text):
        raise ConfigurationError(
            f'{text!r} looks like a path on Windows, where local disks are not supported; write "./{text}" for a file '
            "of that name",
            parameter="location",
        )
    if text[: len(CACHED)].lower() == CACHED:
        return _cached_url(text)
    found = _SCHEME.match(text)
    scheme = found[1].lower() if found else ""
    if found is None or not (found[2] or scheme in EXAMPLES):
        return expanded(text)
    if not found[2] and scheme != "memory":
        raise ConfigurationError(
            f'a URL has "//" after "{scheme}:", as {EXAMPLES[scheme]}; a path of that name is written with "./" '
            "before it",
            parameter="location",
        )
    return _url(text, scheme, found.end())


# S3's access points, whose names have a "/" ("Access points", Amazon S3 User Guide).
_ARN = re.compile(r"arn:[^/:]+:s3[^/:]*:[^/:]*:[^/:]*:(accesspoint|outpost/[^/?]+/accesspoint)/[^/?]+")


def _url(text: str, scheme: str, end: int) -> Url:
    """Split *text*, whose scheme ends at *end*.

    Raises:
        ConfigurationError: it is ambiguous or malformed.
    """
    rest, hash_sign, fragment = text.partition("#")
    hierarchy, question_mark, query = rest[end:].partition("?")
    arn = _ARN.match(hierarchy) if scheme == "s3" else None
    authority, slash, path = hierarchy.partition("/")
    if arn is not None:
        authority, (slash, path) = arn[0], (hierarchy[arn.end() : arn.end() + 1], hierarchy[arn.end() + 1 :])
    start = redacted(rest[:end] + hierarchy)
    if scheme in EXAMPLES and scheme != "postgresql":  # an unescaped password may contain any character
        url_escaping.check_escapes(start)
        if question_mark and "=" not in query:
            raise ConfigurationError(
                f'no name=value follows the "?"; if the "?" is part of the name, write {f"{start}%3F{query}"!r}',
                parameter="location",
            )
        for piece in query.split("&"):
            url_escaping.check_escapes(piece, f"parameter {piece.partition('=')[0]!r}")
        if hash_sign:
            url_escaping.check_escapes(fragment)
        if "#" in fragment:
            raise ConfigurationError(
                'there are two "#" in the URL; write %23 for one that is part of a name',
                parameter="location",
            )
        whole = f"{slash}{path}#{fragment}"
        if hash_sign and scheme in {"file", "sqlite"} and _is_there(whole[scheme == "sqlite" :]):
            raise ConfigurationError(
                f'a file with this "#" in its name exists; write {f"{start}%23{fragment}"!r} for it',
                parameter="location",
            )
        if hash_sign and url_escaping.is_name(rest):
            raise ConfigurationError(
                f'"#" after a name is ambiguous; if it is part of the name, write {f"{start}%23{fragment}"!r}; for an object '
                f"beneath {start!r}, write {f'{start}/#{fragment}'!r}",
                parameter="location",
            )
    return Url(
        text=rest,
        scheme=scheme,
        authority=authority,
        path=slash + path,
        parameters=url_escaping.parameters_in(query),
        fragment=fragment if hash_sign else None,
    )


def _is_there(path: str) -> bool:
    """Whether the percent-encoded path exists."""
    name = url_escaping.unquoted(path)
    return "\0" not in name and os.path.lexists(expanded(name))


def _cached_url(text: str) -> Url:
    """Parse a URL that begins with `cached+`."""
    rest, hash_sign, fragment = text[len(CACHED) :].partition("#")
    hierarchy, question_mark, query = rest.partition("?")
    pieces = [piece for piece in query.split("&") if piece]
    known = {*CACHE_TEXTS, *CACHE_NUMBERS}
    ours = [piece for piece in pieces if url_escaping.unquoted(piece.partition("=")[0]) in known]
    others = [piece for piece in pieces if piece not in ours]
    kept = question_mark + "&".join(others) if others or not ours else ""
    for piece in ours:
        url_escaping.check_escapes(piece, f"parameter {piece.partition('=')[0]!r}")
    inner = hierarchy + kept + hash_sign + fragment
    parsed = parse_location(inner)
    if isinstance(parsed, str) or parsed.cache is not None:
        raise ConfigurationError(
            f'a URL must follow "{CACHED}", as in cached+s3://bucket/prefix?cache_dir=/tmp/papers',
            parameter="location",
        )
    return replace(parsed, cache=url_escaping.parameters_in("&".join(ours)))


def _with_cache(location: str, cache: Mapping[str, str]) -> str:
    """Add `cached+` and the cache's parameters to *location*."""
    if not cache:
        return CACHED + location
    return (
        f"{CACHED}{location}{'&' if '?' in location else '?'}{url_escaping.parameters_as_text(dict(cache))}"
    )


def split_location(location: str | os.PathLike[str]) -> tuple[str, str]:
    """Split the location of one object into the location of its backend and the identifier there.

    The identifier is the fragment, percent-encoded, as in `sqlite:///file.db#identifier`. Without a fragment it is the last component
    of a path and of a `file:` or `ssh:` URL, and the whole key of an `s3:` URL.

    Raises:
        ConfigurationError: *location* is malformed or names no object.
    """
    parsed = parse_location(location)
    if isinstance(parsed, Url) and parsed.cache is not None:
        base, name = split_location(parsed.without_cache())
        return _with_cache(base, parsed.cache), name
    if isinstance(parsed, str):
        parent, name = os.path.split(parsed)
        base = _as_path(parent or ".")
    elif parsed.fragment is not None:
        base, name = parsed.text, url_escaping.unquoted(parsed.fragment)
    elif parsed.scheme == "file":
        base, _, name = parsed.text.rpartition("/")
        base, name = f"{base}/", url_escaping.unquoted(name)
    elif parsed.scheme == "ssh":
        _, query_mark, query = parsed.text.partition("?")
        above, _, name = parsed.path.rpartition("/")
        name = "" if parsed.path == "/~" else url_escaping.unquoted(name)
        base = f"ssh://{parsed.authority}{above or '/'}{query_mark}{query}"  # "/": the object is in the root
    elif parsed.scheme == "s3":
        _, query_mark, query = parsed.text.partition("?")
        # A key that ends in "/" is a prefix, not an object.
        name = "" if parsed.path.endswith("/") else url_escaping.unquoted(parsed.path[1:])
        base = f"s3://{parsed.authority}{query_mark}{query}"
    elif parsed.scheme == "memory" and parsed.authority + parsed.path:
        base, name = "memory:", url_escaping.unquoted(parsed.authority + parsed.path)
    else:
        raise ConfigurationError(
            f'{redacted(parsed.text)} does not name an object; add "#" and its identifier',
            parameter="location",
        )
    if name in {"", ".", ".."}:
        raise ConfigurationError(
            f"{_text(location)!r} names a directory, not an object", parameter="location"
        )
    return base, name


def locations_in(location: str | os.PathLike[str]) -> Callable[[str], str]:
    """A function that composes the location of an object in the backend at *location* from its identifier.

    Raises:
        ConfigurationError: the location is malformed.
    """
    parsed = parse_location(location)
    if isinstance(parsed, str):
        # A Path would drop "./", without which the path may look like a URL.
        above = os.path.join(parsed, "")  # noqa: PTH118
        return lambda identifier: _as_path(above + identifier)
    rest, _, fragment = _text(location).partition("#")
    query = ""
    if parsed.fragment is not None or parsed.scheme not in {"file", "s3", "ssh"}:
        before = f"{rest}#{fragment.removesuffix('/')}/" if fragment else f"{rest}#"
    else:
        hierarchy, mark, query = rest.partition("?")
        if parsed.scheme == "ssh" and not parsed.path:
            hierarchy += "/~"
        before = f"{hierarchy.removesuffix('/')}/"
        query = mark + query
    in_root = parsed.scheme == "ssh" and parsed.path == "/"

    def located(identifier: str) -> str:
        name = url_escaping.quoted(identifier)
        if in_root and (name == "~" or name.startswith("~/")):
            name = f"%7E{name[1:]}"  # "~" alone is the home directory
        return f"{before}{name}{query}"

    return located


def _as_path(path: str) -> str:
    """*path* as a location: with "./" before it if it would be parsed as a URL."""
    with suppress(ConfigurationError):
        if parse_location(path) == path:
            return path
    return f"./{path}"


def redacted(location: str) -> str:
    """*location* without its password, for messages."""
    # An ssh URL may have an "@" in its path, after a port. In other URLs an unescaped password may contain a "/".
    inside = r"[^/@]*" if re.match(r"(cached\+)?ssh://", location, re.IGNORECASE) else r".*"
    return re.sub(
        rf"\A([a-z][a-z0-9+.-]*://[^/:@]*):{inside}@", r"\1:***@", location, flags=re.DOTALL | re.IGNORECASE
    )


def has_password(location: str) -> bool:
    """Whether *location* contains a password."""
    return redacted(location) != location


def _text(location: str | os.PathLike[str]) -> str:
    if isinstance(location, str):
        return location
    return os.fsdecode(location)
