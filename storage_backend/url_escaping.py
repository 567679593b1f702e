"""How names are written in URLs: the same rules for all backends.

* A local path is literal: only a "~" at its beginning has a special meaning.
* In a URL, "?" begins the parameters, "#" begins an identifier or prefix, and "%XX" is a byte. In a name these three characters are
  written "%3F", "%23" and "%25"; every other character may be escaped or not, and "+" is not a space.
* After `s3://bucket/` and `ssh://host/` the path continues with the object's name. There a "#" may follow only a "/", the
  parameters, or the bucket or host itself: after a name it could be part of the name, and is refused.
* An ambiguous URL is refused, and the message gives an unambiguous spelling.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, urlencode

from storage_backend.errors import ConfigurationError

_SPECIAL = {"%": "%25", "#": "%23", "?": "%3F"}
_STRAY = re.compile(r"%(?![0-9A-Fa-f]{2})")
_GOES_ON = re.compile(r"(?:s3|ssh)://[^/?#]+/[^?#]*[^?#/]\Z")


def quoted(name: str, safe: str = "/") -> str:
    """Percent-encode all characters of *name* except unreserved ones (RFC 3986) and *safe*."""
    return quote(name, safe=safe, errors="surrogateescape")


def escaped(name: str) -> str:
    """Percent-encode only "%", "#" and "?"."""
    return re.sub("[%#?]", lambda found: _SPECIAL[found[0]], name)


def unquoted(text: str) -> str:
    """The inverse of `quoted` and `escaped`. Bytes that are not UTF-8 become surrogates, as in identifiers."""
    return unquote(text, errors="surrogateescape")


def parameters_as_text(parameters: dict[str, str], safe: str = "") -> str:
    """The query of a URL; the inverse of `parameters_in`."""
    return urlencode(parameters, safe=safe, quote_via=quote, errors="surrogateescape")


def parameters_in(query: str) -> dict[str, str]:
    """Parse the query of a URL.

    Raises:
        ConfigurationError: a parameter occurs twice.
    """
    found: dict[str, str] = {}
    for piece in query.split("&"):
        name, _, value = piece.partition("=")
        name = unquoted(name)
        if name in found:
            raise ConfigurationError(f"parameter {name!r} occurs twice", parameter=name)
        if piece:
            found[name] = unquoted(value)
    return found


def check_escapes(text: str, shown: str | None = None) -> None:
    """Refuse a "%" in *text*, a part of a URL, without two hexadecimal digits after it.

    Args:
        text: the part.
        shown: what the message says instead of the correct spelling, which could show a secret.

    Raises:
        ConfigurationError: there is such a "%".
    """
    if _STRAY.search(text):
        what = shown if shown is not None else f"write {_STRAY.sub('%25', text)!r}"
        raise ConfigurationError(
            f'in a URL "%" begins an escaped byte, as in %20; write %25 for a "%" in a name: {what}',
            parameter="location",
        )


def is_name(location: str) -> bool:
    """Whether *location* ends in a name of S3 or SSH, which a "#" could be part of."""
    return _GOES_ON.match(location) is not None


def beneath(location: str, prefix: str) -> str:
    """The location of the objects with *prefix* in the backend at *location*."""
    mark = "/" if "#" in location else "/#" if is_name(location) else "#"
    return f"{location}{mark}{quoted(prefix)}"
