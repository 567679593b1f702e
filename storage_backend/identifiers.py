"""The rules for identifiers, and the one glob dialect."""

from __future__ import annotations

import re
from functools import lru_cache

from storage_backend.errors import InvalidIdentifierError

MAX_BYTES = (
    1024  # the longest key of Amazon S3 ("Naming Amazon S3 objects"), so that every object can be moved there
)
RESERVED = ".~sb-"  # prefix of the segments of our temporary files

_OUTSIDE = "outside base directory"


def check(identifier: str, *, surrogates: bool = False, max_segment_bytes: int | None = None) -> None:
    """Refuse *identifier* unless it is valid. It is never repaired.

    Args:
        identifier: segments joined by "/".
        surrogates: accept names that are not UTF-8, decoded with `surrogateescape`, as on file systems.
        max_segment_bytes: the longest segment that the store accepts.

    Raises:
        InvalidIdentifierError: with the reason; it says "outside base directory" for ".." and absolute paths.
        TypeError: it is not a str.
    """
    # Fast path: a substring search for each possible fault of a short ASCII name; 0.2 us.
    if (
        identifier.__class__ is str
        and identifier.isascii()
        and len(identifier) <= (max_segment_bytes or MAX_BYTES)
        and "//" not in (bounded := f"/{identifier}/")
        and "/." not in bounded
        and "\0" not in identifier
    ):
        return
    reason = _fault(identifier, surrogates, max_segment_bytes)
    if reason is not None:
        raise InvalidIdentifierError(
            f"invalid identifier {_shown(identifier)}: {reason}", identifier=identifier
        )


def is_valid(identifier: str, *, surrogates: bool = False, max_segment_bytes: int | None = None) -> bool:
    """Whether `check` accepts *identifier*."""
    return _fault(identifier, surrogates, max_segment_bytes) is None


def encode(identifier: str) -> bytes:
    """The bytes of a valid identifier. Identifiers are ordered by these."""
    return identifier.encode("utf-8", "surrogateescape")


def decode(name: bytes) -> str:
    """The identifier of *name*, the inverse of `encode`."""
    return name.decode("utf-8", "surrogateescape")


def _fault(identifier: str, surrogates: bool, max_segment_bytes: int | None) -> str | None:
    """The reason why *identifier* is invalid, or None."""
    if not isinstance(identifier, str):
        raise TypeError(f"an identifier is a str, not {type(identifier).__name__}: {identifier!r}")
    if not identifier:
        return "it is empty"
    if "\0" in identifier:
        return "it has a NUL"
    if identifier[0] == "/":
        return f"it is absolute, which is {_OUTSIDE}"
    segments = identifier.split("/")
    if ".." in segments:
        return f'it has a ".." segment, which may lead {_OUTSIDE}'
    if "." in segments:
        return 'it has a "." segment'
    if "" in segments:
        return "it has an empty segment"
    if any(segment.startswith(RESERVED) for segment in segments):
        return f"a segment begins with {RESERVED!r}, which is reserved for temporary files"
    try:
        encoded = identifier.encode("utf-8", "surrogateescape" if surrogates else "strict")
    except UnicodeEncodeError:
        return "it has a lone surrogate, which has no encoding in UTF-8"
    if surrogates and encoded.decode("utf-8", "surrogateescape") != identifier:
        return "its surrogates encode valid UTF-8, so it would be a second name of one object"
    if len(encoded) > MAX_BYTES:
        return f"it has {len(encoded):,} bytes; at most {MAX_BYTES:,} are possible"
    if max_segment_bytes is not None:
        longest = max(map(len, encoded.split(b"/")))
        if longest > max_segment_bytes:
            return f"a segment has {longest} bytes; this store allows {max_segment_bytes}"
    return None


def _shown(identifier: str) -> str:
    """A printable, bounded form of *identifier*."""
    return repr(identifier) if len(identifier) <= 200 else f"{identifier[:200]!r}..."


class Glob:
    """A pattern: "/" separates, "*" and "?" stay inside a segment, "**" as a segment spans any number of them.

    "[abc]" and "[!abc]" name characters; a "[" that is never closed is an ordinary character. Matching is
    case-sensitive and dot files are ordinary.

    Attributes:
        stem: the literal text that every match begins with.
        recursive: whether "**" occurs, so that matches lie at any depth.
        depth: how many segments a match has, or at least has if the pattern is recursive.
    """

    def __init__(self, pattern: str) -> None:
        if not isinstance(pattern, str):
            raise TypeError(f"a pattern is a str, not {type(pattern).__name__}: {pattern!r}")
        segments = pattern.split("/")
        reason = _pattern_fault(pattern, segments)
        if reason is not None:
            raise InvalidIdentifierError(f"invalid pattern {_shown(pattern)}: {reason}", identifier=pattern)
        # "**/**" is equivalent to "**", and would make the expression backtrack.
        self._segments = [
            segment
            for index, segment in enumerate(segments)
            if segment != "**" or segments[index - 1 : index] != ["**"]
        ]
        self.pattern = pattern
        self.recursive = "**" in self._segments
        self.depth = sum(segment != "**" for segment in self._segments) + (self._segments[-1] == "**")
        self.stem = _stem(self._segments)
        self._expression = re.compile(_expression(self._segments), re.DOTALL)
        self._levels = [re.compile(_segment(segment), re.DOTALL) for segment in self._before_recursion()]

    def matches(self, identifier: str) -> bool:
        """Whether *identifier* as a whole matches."""
        return self._expression.fullmatch(identifier) is not None

    def may_hold(self, directory: str) -> bool:
        """Whether anything under *directory* (no slash at its end; "" is the root) can match."""
        parts = directory.split("/") if directory else []
        if not self.recursive and len(parts) >= len(self._segments):
            return False
        return all(level.fullmatch(part) for level, part in zip(self._levels, parts, strict=False))

    def _before_recursion(self) -> list[str]:
        return self._segments[: self._segments.index("**")] if self.recursive else self._segments


@lru_cache(maxsize=256)
def glob(pattern: str) -> Glob:
    """The compiled form of *pattern*.

    Raises:
        InvalidIdentifierError: a ValueError: it is empty, absolute, has ".." or an empty segment, or ends in "/".
    """
    return Glob(pattern)


def _pattern_fault(pattern: str, segments: list[str]) -> str | None:
    if not pattern:
        return "it is empty"
    if pattern[0] == "/":
        return f"it is absolute, which is {_OUTSIDE}; patterns are relative to the backend"
    if ".." in segments:
        return f'it has a ".." segment, which may lead {_OUTSIDE}'
    if pattern[-1] == "/":
        return 'it ends in "/"; add "**" for everything beneath'
    if "" in segments or "." in segments:
        return 'it has an empty or "." segment'
    if "\0" in pattern:
        return "it has a NUL"
    return None


def _stem(segments: list[str]) -> str:
    literal: list[str] = []
    for segment in segments:
        magic = re.search(r"[*?\[]", segment)
        if magic:
            return "/".join([*literal, segment[: magic.start()]])
        literal.append(segment)
    return "/".join(literal)


def _expression(segments: list[str]) -> str:
    if "**" not in segments:
        return "/".join(map(_segment, segments))
    head, *middle, tail = _between_recursions(segments)
    # As with "*" in a segment: for all but the last, the first match is correct, so the groups are atomic.
    return "".join(
        [
            *(f"{_segment(segment)}/" for segment in head),
            *(f"(?>(?:[^/]+/)*?{''.join(f'{_segment(segment)}/' for segment in run)})" for run in middle),
            "(?:[^/]+/)*" + "/".join(map(_segment, tail)) if tail else ".+",
        ]
    )


def _between_recursions(segments: list[str]) -> list[list[str]]:
    runs: list[list[str]] = [[]]
    for segment in segments:
        if segment == "**":
            runs.append([])
        else:
            runs[-1].append(segment)
    return runs


def _segment(segment: str) -> str:
    """The expression of one segment. Each "*" takes the shortest run atomically, so that matching is never exponential."""
    text = re.sub(r"\*+", "*", segment)
    pieces: list[str] = [""]
    position = 0
    while position < len(text):
        character = text[position]
        position += 1
        if character == "*":
            pieces.append("")
            continue
        if character == "?":
            piece = "[^/]"
        elif (
            character == "["
            and (closing := text.find("]", position + 1 + (text[position : position + 1] == "!"))) > 0
        ):
            piece = _class(text[position:closing])
            position = closing + 1
        else:
            piece = re.escape(character)
        pieces[-1] += piece
    if len(pieces) == 1:
        return pieces[0]
    # Shortest-first is correct for all but the last "*", whose tail must reach the end of the segment.
    middle = "".join(f"(?>[^/]*?{piece})" for piece in pieces[1:-1])
    return f"{pieces[0]}{middle}[^/]*{pieces[-1]}"


def _class(inside: str) -> str:
    """The expression of "[...]"; a reversed range such as "z-a" contains no character."""
    negated = inside.startswith("!")
    members = inside[negated:]
    ranges = []
    while members:
        low, high = members[0], members[0]
        if members[1:2] == "-" and len(members) > 2:
            high = members[2]
            members = members[3:]
        else:
            members = members[1:]
        if low <= high:
            ranges.append(f"{re.escape(low)}-{re.escape(high)}")
    if not ranges:
        return "[^/]" if negated else "(?!)"
    # A class never matches "/", not even a negated one.
    return f"(?!/)[{'^' if negated else ''}{''.join(ranges)}]"
