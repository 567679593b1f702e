from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from storage_backend import InvalidIdentifierError, identifiers
from storage_backend.identifiers import MAX_BYTES, RESERVED, check, decode, encode, glob, is_valid
from storage_backend.testing.topics.identifiers import AWKWARD, INVALID, OUTSIDE, TWINS
from storage_backend.testing.topics.listing import BAD_PATTERNS, GLOBS, OBJECTS
from tests.tiers import thorough

pytestmark = pytest.mark.quick

# Characters that mean something to identifiers, patterns or regular expressions, and some of each length in UTF-8.
SPECIAL = "/.*?[]!-^\\~|&#(){}+$ \n\0ab\u00e9\u20ac\U0001f600\ud800\udcc3\udca9\udcff"
segments = st.one_of(
    st.text(SPECIAL, max_size=4),
    st.sampled_from(
        ["", ".", "..", "...", ".a", RESERVED, RESERVED + "x", "a" + RESERVED, ".~sb", "x" * 300]
    ),
)
anything = st.lists(segments, max_size=6).map("/".join) | st.text(SPECIAL, max_size=12) | st.text(max_size=12)


def slowly_valid(text: str, surrogates: bool, longest: int | None) -> bool:
    """The rules of contract.md "Identifiers", one after the other, in its words."""
    if text == "" or "\0" in text or text.startswith("/"):
        return False
    for segment in text.split("/"):
        if segment in {"", ".", ".."} or segment.startswith(".~sb-"):
            return False
    encoded = b""
    for character in text:
        number = ord(character)
        if 0xD800 <= number < 0xE000:
            if not surrogates or not 0xDC80 <= number <= 0xDCFF:
                return False
            encoded += bytes([number - 0xDC00])
        else:
            encoded += character.encode()
    if surrogates:
        try:
            again = encoded.decode("utf-8", "surrogateescape")
        except UnicodeDecodeError:
            return False
        if again != text:
            return False
    if len(encoded) > 1024:
        return False
    return longest is None or all(len(part) <= longest for part in encoded.split(b"/"))


class TestCheck:
    @thorough(1500)
    @given(text=anything, surrogates=st.booleans(), longest=st.sampled_from([None, 1, 3, 255]))
    @example(text="\udcc3\udca9", surrogates=True, longest=None)
    @example(text="a\udcff", surrogates=True, longest=2)
    @example(text="é" * 512, surrogates=False, longest=None)
    @example(text="é" * 512 + "a", surrogates=False, longest=None)
    @example(text="x" * 1024, surrogates=False, longest=None)
    @example(text="x" * 1025, surrogates=False, longest=None)
    @example(text="ab/cde", surrogates=False, longest=3)
    @example(text="ab/cdef", surrogates=False, longest=3)
    def test_it_agrees_with_the_rules_read_slowly(
        self, text: str, surrogates: bool, longest: int | None
    ) -> None:
        expected = slowly_valid(text, surrogates, longest)
        assert is_valid(text, surrogates=surrogates, max_segment_bytes=longest) is expected
        if expected:
            check(text, surrogates=surrogates, max_segment_bytes=longest)
            return
        with pytest.raises(InvalidIdentifierError) as caught:
            check(text, surrogates=surrogates, max_segment_bytes=longest)
        assert caught.value.identifier == text
        assert isinstance(caught.value, ValueError)
        # A message can be printed and logged everywhere, whatever the identifier was.
        str(caught.value).encode("utf-8")
        assert len(str(caught.value)) < 1200

    @pytest.mark.parametrize("name", [*AWKWARD, *(twin for twins in TWINS for twin in twins)])
    def test_awkward_is_valid(self, name: str) -> None:
        check(name)
        assert is_valid(name)

    @pytest.mark.parametrize("name", INVALID, ids=range(len(INVALID)))
    def test_invalid_is_refused(self, name: str) -> None:
        assert not is_valid(name)
        assert not is_valid(name, surrogates=True)
        with pytest.raises(InvalidIdentifierError) as caught:
            check(name)
        assert ("outside base directory" in str(caught.value)) is (name in OUTSIDE)

    @pytest.mark.parametrize("value", [b"a", None, 3, ["a"], object()])
    def test_another_type_is_an_error_of_type(self, value: object) -> None:
        for call in (check, is_valid, encode_none):
            with pytest.raises((TypeError, AttributeError)):
                call(value)  # type: ignore[arg-type] # on purpose

    def test_subclass_of_str_is_an_identifier(self) -> None:
        class Name(str):
            __slots__ = ()

        check(Name("a/b"))
        assert is_valid(Name("a/b"))
        assert not is_valid(Name("../b"))

    def test_limits_are_exact(self) -> None:
        check("x" * MAX_BYTES)
        check("a" * 255, max_segment_bytes=255)
        for name in ("a" * 256, "é" * 128, "b/" + "a" * 256 + "/b"):
            with pytest.raises(InvalidIdentifierError, match=r"256 bytes.*255"):
                check(name, max_segment_bytes=255)

    def test_file_system_names_round_trip(self) -> None:
        for name in (b"plain", b"caf\xe9", b"\xff\xfe/\x80", "é😀".encode()):
            text = decode(name)
            check(text, surrogates=True)
            assert encode(text) == name


def encode_none(value: str) -> object:
    return encode(value)


@given(st.lists(anything, max_size=20))
def test_order_of_encoded_bytes_is_that_of_code_points(names: list[str]) -> None:
    valid = [name for name in names if is_valid(name)]
    assert sorted(valid, key=encode) == sorted(valid)


# Patterns from pieces, so that most are valid and many match.
pattern_text = st.lists(
    st.sampled_from(
        [
            *(
                "a",
                "b",
                "aa",
                "é",
                ".",
                "-",
                "/",
                "/",
                "*",
                "?",
                "**",
                "/**/",
                "**/",
                "/**",
                "[ab]",
                "[!a]",
                "[a-b]",
            ),
            *(
                "[]]",
                "[!]]",
                "[",
                "]",
                "!",
                "^",
                "[^]",
                "[^a]",
                "[-a]",
                "[a-]",
                "[b-a]",
                "[b-aa]",
                "[!b-a]",
                "[a-a]",
            ),
            *(
                "\\",
                "[\\]",
                "[\\-a]",
                "|",
                "[|]",
                "&&",
                "[&&]",
                "[~~]",
                "[--]",
                "[--a]",
                "[[a]",
                "[a[]",
                "\n",
                "[é-ü]",
            ),
        ]
    ),
    min_size=1,
    max_size=7,
).map("".join)
name_text = st.lists(st.text("ab.-é]^[!\\|&~\nü", min_size=1, max_size=3), min_size=1, max_size=5).map(
    "/".join
)


def slowly_matches(pattern: str, name: str) -> bool:
    """The dialect of contract.md "Globs", by trying everything."""
    return _segments_match(tuple(pattern.split("/")), tuple(name.split("/")))


@lru_cache(maxsize=10_000)
def _segments_match(patterns: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        if len(patterns) == 1:
            return bool(parts)
        return any(_segments_match(patterns[1:], parts[skip:]) for skip in range(len(parts) + 1))
    return bool(parts) and _one_matches(patterns[0], parts[0]) and _segments_match(patterns[1:], parts[1:])


def _one_matches(pattern: str, part: str) -> bool:
    if not pattern:
        return not part
    first, rest = pattern[0], pattern[1:]
    if first == "*":
        return any(_one_matches(rest, part[skip:]) for skip in range(len(part) + 1))
    if first == "?":
        return bool(part) and _one_matches(rest, part[1:])
    if first == "[":
        members, after = _members(rest)
        if members is not None:
            return bool(part) and members(part[0]) and _one_matches(after, part[1:])
    return part[:1] == first and _one_matches(rest, part[1:])


def _members(text: str) -> tuple[Callable[[str], bool] | None, str]:
    negated = text.startswith("!")
    inside = text[1:] if negated else text
    closing = inside.find("]", 1)
    if closing < 0:
        return None, text
    inside, after = inside[:closing], inside[closing + 1 :]
    allowed: set[str] = set()
    while inside:
        if len(inside) >= 3 and inside[1] == "-":
            allowed.update(chr(number) for number in range(ord(inside[0]), ord(inside[2]) + 1))
            inside = inside[3:]
        else:
            allowed.add(inside[0])
            inside = inside[1:]
    return (lambda character: (character in allowed) is not negated), after


class TestGlob:
    @thorough(4000)
    @given(pattern=pattern_text, name=name_text)
    @example(pattern="[b-aa]", name="a")
    @example(pattern="[!b-a]", name="b")
    @example(pattern="[--a]", name=".")
    @example(pattern="a/**", name="a")
    @example(pattern="**/a", name="a")
    @example(pattern="a/**/b", name="a/b")
    @example(pattern="**/**", name="a")
    @example(pattern="*\n*", name="a\nb")
    @example(pattern="*a", name="a\n")
    def test_it_agrees_with_trying_everything(self, pattern: str, name: str) -> None:
        try:
            found = glob(pattern)
        except InvalidIdentifierError:
            segments = pattern.split("/")
            assert pattern[0] == "/" or pattern[-1] == "/" or {"", ".", ".."} & set(segments)
            return
        assert found.matches(name) is slowly_matches(pattern, name)

    @thorough(1500)
    @given(pattern=pattern_text, name=name_text)
    def test_what_is_pushed_down_loses_no_match(self, pattern: str, name: str) -> None:
        try:
            found = glob(pattern)
        except InvalidIdentifierError:
            assume(False)
        parts = name.split("/")
        if not found.matches(name):
            return
        assert name.startswith(found.stem)
        assert len(parts) >= found.depth if found.recursive else len(parts) == found.depth
        for depth in range(len(parts)):
            assert found.may_hold("/".join(parts[:depth]))

    @thorough(500)
    @given(name=name_text)
    def test_what_is_not_magic_matches_itself_only(self, name: str) -> None:
        assume(not set(name) & set("*?[") and is_valid(name))
        found = glob(name)
        assert found.stem == name
        assert found.matches(name)
        assert not found.matches(name + "a")
        assert not found.recursive

    def test_the_table_of_the_suite(self) -> None:
        for pattern, expected in GLOBS.items():
            found = glob(pattern)
            assert [name for name in OBJECTS if found.matches(name)] == list(expected), pattern
            assert [name for name in OBJECTS if slowly_matches(pattern, name)] == list(expected), pattern

    @pytest.mark.parametrize("pattern", ["", *BAD_PATTERNS, "a//b", "./a", "a/.", "a\0"])
    def test_bad_pattern_is_refused(self, pattern: str) -> None:
        with pytest.raises(InvalidIdentifierError) as caught:
            glob(pattern)
        assert isinstance(caught.value, ValueError)
        assert caught.value.identifier == pattern

    @pytest.mark.parametrize("pattern", ["/a", "../a", "a/../b", ".."])
    def test_refusal_of_what_leads_outside_says_so(self, pattern: str) -> None:
        with pytest.raises(InvalidIdentifierError, match="outside base directory"):
            glob(pattern)

    def test_another_type_is_an_error_of_type(self) -> None:
        with pytest.raises(TypeError):
            glob(b"*")

    @pytest.mark.parametrize(
        ("pattern", "stem", "recursive"),
        [
            ("a/b/*.pdf", "a/b/", False),
            ("a/b*/c", "a/b", False),
            ("a/b", "a/b", False),
            ("**", "", True),
            ("a/**", "a/", True),
            ("a/**/b", "a/", True),
            ("a[b]/c", "a", False),
            ("é/x?", "é/x", False),
        ],
    )
    def test_stem_is_what_is_literal(self, pattern: str, stem: str, recursive: bool) -> None:
        found = glob(pattern)
        assert found.stem == stem
        assert found.recursive is recursive

    def test_directories_that_cannot_hold_a_match_are_told(self) -> None:
        found = glob("docs/*/a.pdf")
        assert [found.may_hold(name) for name in ("", "docs", "docs/x", "docs/x/y", "other")] == [
            *(True, True, True),
            *(False, False),
        ]
        deep = glob("docs/**/a.pdf")
        assert [deep.may_hold(name) for name in ("", "docs", "docs/x/y/z", "doc", "other/docs")] == [
            *(True, True, True),
            *(False, False),
        ]

    @pytest.mark.parametrize(
        ("pattern", "name"),
        [
            ("*a" * 60 + "b", "a" * 900),
            ("*" * 500 + "b", "a" * 900),
            ("*?" * 60 + "b", "a" * 900),
            ("*[ab]" * 60 + "c", "ab" * 450),
            ("**/a/" * 60 + "b", "a/" * 500 + "c"),
            ("**/" * 300 + "b", "a/" * 500 + "c"),
            ("**/*a*/" * 40 + "b", "xax/" * 250 + "c"),
            ("**/*/" * 60 + "b", "a/" * 500 + "c"),
            ("**/a/**/b/" * 30 + "c", "a/b/" * 250 + "d"),
            ("**/*a*a*a*b/" * 20 + "**", "a" * 100 + "/" + "a/" * 400 + "d"),
            ("[" * 900, "a" * 900),
            ("[!" * 400, "[!" * 400),
            ("[a-b" * 200, "a" * 900),
            ("?" * 900, "a" * 899),
            ("**/" * 300 + "**", "a/" * 500 + "c"),
        ],
        ids=range(15),
    )
    def test_adversarial_pattern_finishes_fast(self, pattern: str, name: str) -> None:
        start = time.process_time()
        found = glob(pattern)
        found.matches(name)
        found.may_hold(name)
        # Exponential or high-degree matching would take hours; this is one of the slowest machines' milliseconds.
        assert time.process_time() - start < 2.0

    def test_compiled_patterns_are_kept(self) -> None:
        assert glob("kept/*.pdf") is glob("kept/*.pdf")
        assert identifiers.glob("kept/*.pdf").pattern == "kept/*.pdf"
