"""How a place, and an object in it, is written as text: the one rule, for all backends.

* A path of this machine is literal: no character but a "~" at its beginning means anything else than itself.
* In a URL, "?" begins parameters, "#" begins the name of something in the place, and "%XX" is a byte. As characters of a
  name these three are "%3F", "%23" and "%25"; any other may be written either way, and "+" is "+".
* Behind `s3://bucket/` and `ssh://host/` the name of an object goes on as path. There a "#" stands behind a "/", the
  parameters, or the bucket or host alone: behind a name it may be part of that, and is refused.
* What may be read in two ways is refused, with the spelling that would do.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, urlencode

from storage_backend.errors import ConfigurationError

_SPECIAL = {"%": "%25", "#": "%23", "?": "%3F"}
_STRAY = re.compile(r"%(?![0-9A-Fa-f]{2})")
_GOES_ON = re.compile(r"(?:s3|ssh)://[^/?#]+/[^?#]*[^?#/]\Z")


def quoted(name: str, safe: str = "/") -> str:
    """*name* for a URL, with all percent-encoded that any program might take for something else."""
    return quote(name, safe=safe, errors="surrogateescape")


def escaped(name: str) -> str:
    """*name* for a URL, with only that percent-encoded which would be read as something else."""
    return re.sub("[%#?]", lambda found: _SPECIAL[found[0]], name)


def unquoted(text: str) -> str:
    """The inverse of `quoted` and `escaped`; bytes that are not UTF-8 are kept, as identifiers have them."""
    return unquote(text, errors="surrogateescape")


def parameters_as_text(parameters: dict[str, str], safe: str = "") -> str:
    """What follows the "?"; the inverse of `parameters_in`."""
    return urlencode(parameters, safe=safe, quote_via=quote, errors="surrogateescape")


def parameters_in(query: str) -> dict[str, str]:
    """The parameters that *query* has.

    Raises:
        ConfigurationError: one occurs twice.
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
    """Refuse a "%" in *text* that begins no byte.

    Args:
        text: a part of a URL.
        shown: with which message to show it; None shows what would do.

    Raises:
        ConfigurationError: there is one.
    """
    if _STRAY.search(text):
        what = shown if shown is not None else f"write {_STRAY.sub('%25', text)!r}"
        raise ConfigurationError(
            f'in a URL "%" begins a byte, as %20, and a "%" of a name is %25: {what}', parameter="location"
        )


def is_name(location: str) -> bool:
    """Whether *location*, of a place, ends in what a "#" might go on."""
    return _GOES_ON.match(location) is not None


def beneath(location: str, prefix: str) -> str:
    """The location of what begins with *prefix* in the place at *location*."""
    mark = "/" if "#" in location else "/#" if is_name(location) else "#"
    return f"{location}{mark}{quoted(prefix)}"
