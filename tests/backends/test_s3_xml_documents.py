from __future__ import annotations

import pickle
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime, parsedate_to_datetime
from functools import cache
from typing import Any
from urllib.parse import quote_plus
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

import botocore.handlers
import botocore.parsers
import botocore.session
import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from storage_backend.backends.s3 import xml_documents
from storage_backend.backends.s3.object_head import etag_of, http_date
from storage_backend.backends.s3.xml_documents import (
    EmbeddedError,
    ErrorDocument,
    ListedObject,
    ListingPage,
    UnexpectedResponseError,
    can_be_xml,
    delete_request,
    moment_of,
    parse_copied,
    parse_deleted,
    parse_error,
    parse_page,
)
from tests.tiers import thorough

pytestmark = pytest.mark.quick

AMAZON = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
PAGE = (
    f"{DECLARATION}<ListBucketResult {AMAZON}><Name>models</Name><Prefix>a/</Prefix>"
    "<NextContinuationToken>1ueGcxLPRx1Tr/XYExHnhbYLgveDs2J/wm36Hy4vbOwM=</NextContinuationToken>"
    "<KeyCount>4</KeyCount><MaxKeys>4</MaxKeys><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>"
    "<Contents><Key>a/b+c%2B%0A%C3%A9.bin</Key><LastModified>2024-01-02T03:04:05.000Z</LastModified>"
    "<ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag><ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm>"
    "<ChecksumType>FULL_OBJECT</ChecksumType><Size>0</Size><StorageClass>STANDARD</StorageClass></Contents>"
    "<Contents><Key>a/c</Key><LastModified>2024-01-02T03:04:06.000Z</LastModified>"
    "<ETag>&quot;66d1a1a2ed08fd05c137f316af4ff255-2&quot;</ETag><Size>5497558138880</Size>"
    "<StorageClass>STANDARD</StorageClass></Contents>"
    "<CommonPrefixes><Prefix>a/d+d/</Prefix></CommonPrefixes><CommonPrefixes><Prefix>a/e/</Prefix></CommonPrefixes>"
    "</ListBucketResult>"
)
PAGE_MEANS = ListingPage(
    [
        ListedObject(
            "a/b c+\né.bin", 0, datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC), "d41d8cd98f00b204e9800998ecf8427e"
        ),
        ListedObject(
            "a/c", 5 << 40, datetime(2024, 1, 2, 3, 4, 6, tzinfo=UTC), "66d1a1a2ed08fd05c137f316af4ff255-2"
        ),
    ],
    ["a/d d/", "a/e/"],
    "1ueGcxLPRx1Tr/XYExHnhbYLgveDs2J/wm36Hy4vbOwM=",
)
ERROR = (
    f"{DECLARATION}<Error><Code>PermanentRedirect</Code><Message>Use the &lt;other&gt; endpoint.</Message>"
    "<Endpoint>models.s3.eu-west-1.amazonaws.com</Endpoint><Region>eu-west-1</Region><HostId>h+/=</HostId></Error>"
)
DELETED = (
    f"{DECLARATION}<DeleteResult {AMAZON}><Deleted><Key>a</Key></Deleted>"
    "<Error><Key>b&amp;&#13;&#10;c</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
    "<Error><Key>d</Key><Code>InternalError</Code><Message>Please try again</Message></Error></DeleteResult>"
)
COPIED = (
    f"{DECLARATION}<CopyObjectResult {AMAZON}><LastModified>2024-01-02T03:04:05.000Z</LastModified>"
    "<ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag></CopyObjectResult>"
)
LAUGHS = (
    '<!DOCTYPE lolz [<!ENTITY lol "lol">'
    + "".join(f'<!ENTITY lol{n} "{"&lol;" * 10 if n == 1 else f"&lol{n - 1};" * 10}">' for n in range(1, 10))
    + "]>"
)
PARSERS: dict[str, tuple[Callable[[bytes], object], str]] = {
    "page": (parse_page, PAGE),
    "deleted": (parse_deleted, DELETED),
    "copied": (parse_copied, COPIED),
}

XML_CHARS = st.characters(exclude_categories=["Cs"]).filter(can_be_xml)
ANY_KEYS = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("%+ &<>\"'/\r\n\t\0"), min_size=1
)
XML_KEYS = st.text(XML_CHARS | st.sampled_from("%+ &<>\"'/\r\n\t"), min_size=1)
SECONDS = st.integers(0, 253402300799).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
ETAGS = st.text("0123456789abcdef", min_size=32, max_size=32) | st.just("66d1a1a2ed08fd05c137f316af4ff255-2")
TOKENS = st.none() | st.text(string.ascii_letters + "+/=&<", min_size=1)


@dataclass(frozen=True)
class Style:
    """How a service writes."""

    declaration: str
    namespace: str
    gap: str
    quote: str
    fraction: str
    order: tuple[str, ...]
    encoded: bool


STYLES = st.builds(
    Style,
    declaration=st.sampled_from([DECLARATION, "", '<?xml version="1.0"?>', "\ufeff" + DECLARATION]),
    namespace=st.sampled_from([AMAZON, "", 'xmlns="https://storage.example/"']),
    gap=st.sampled_from(["", "\n", "\r\n  ", "\t"]),
    quote=st.sampled_from(["&quot;", "&#34;", '"', ""]),
    fraction=st.sampled_from(["", ".0", ".000", ".678", ".999999", ".999999999"]),
    order=st.just(
        ("Key", "LastModified", "ETag", "ChecksumAlgorithm", "ChecksumType", "Size", "StorageClass")
    )
    | st.permutations(["Key", "LastModified", "ETag", "Size", "StorageClass", "Owner"]).map(tuple),
    encoded=st.booleans(),
)


def written(text: str, *, encoded: bool) -> str:
    """*text* as a service writes it: Amazon encodes as Java's URLEncoder, but for "/"."""
    if encoded:
        return quote_plus(text, safe="/*").replace("~", "%7E")
    return escape(text, {"\r": "&#13;", "\n": "&#10;", "\t": "&#9;"})


def document(page: ListingPage, style: Style) -> bytes:
    def element(name: str, inner: str) -> str:
        return f"<{name}>{inner}</{name}>{style.gap}"

    def contents(entry: ListedObject) -> str:
        assert entry.modified is not None
        moment = entry.modified.replace(tzinfo=None).isoformat()
        texts = {
            "Key": written(entry.key, encoded=style.encoded),
            "LastModified": f"{moment}{style.fraction}Z",
            "ETag": f"{style.quote}{entry.etag}{style.quote}",
            "Size": str(entry.size),
            "StorageClass": "STANDARD",
            "ChecksumAlgorithm": "CRC32",
            "ChecksumType": "FULL_OBJECT",
            "Owner": element("ID", "o") + element("DisplayName", "name"),
        }
        return element("Contents", style.gap + "".join(element(name, texts[name]) for name in style.order))

    truncated = element("IsTruncated", "false")
    if page.token is not None:
        truncated = element("IsTruncated", "true") + element("NextContinuationToken", escape(page.token))
    encoding = element("EncodingType", "url") if style.encoded else ""
    prefixes = "".join(
        element("CommonPrefixes", element("Prefix", written(prefix, encoded=style.encoded)))
        for prefix in page.prefixes
    )
    inner = truncated + encoding + "".join(contents(entry) for entry in page.entries) + prefixes
    return f"{style.declaration}<ListBucketResult {style.namespace}>{inner}</ListBucketResult>".encode()


@st.composite
def pages(draw: st.DrawFn) -> tuple[ListingPage, Style]:
    style = draw(STYLES)
    keys = ANY_KEYS if style.encoded else XML_KEYS
    entries = draw(
        st.lists(st.builds(ListedObject, keys, st.integers(0, (1 << 63) - 1), SECONDS, ETAGS), max_size=4)
    )
    return ListingPage(entries, draw(st.lists(keys, max_size=3)), draw(TOKENS)), style


@cache
def s3_model() -> Any:
    return botocore.session.get_session().get_service_model("s3")


def by_botocore(operation: str, body: bytes, status: int = 200) -> Any:
    shape = s3_model().operation_model(operation).output_shape
    parser = botocore.parsers.create_parser("rest-xml")
    parsed = parser.parse({"status_code": status, "headers": {}, "body": body}, shape)
    if operation == "ListObjectsV2":
        botocore.handlers.decode_list_object_v2(parsed, {"encoding_type_auto_set": True})
    return parsed


class TestPage:
    def test_page_of_amazon(self) -> None:
        assert parse_page(PAGE.encode()) == PAGE_MEANS

    @given(pages())
    def test_every_style_gives_back_what_was_written(self, case: tuple[ListingPage, Style]) -> None:
        page, style = case
        assert parse_page(document(page, style)) == page

    @given(pages())
    def test_botocore_reads_the_same(self, case: tuple[ListingPage, Style]) -> None:
        body = document(*case)
        theirs = by_botocore("ListObjectsV2", body)
        found = parse_page(body)
        assert [(e.key, e.size, e.modified, e.etag) for e in found.entries] == [
            (o["Key"], o["Size"], o["LastModified"].replace(microsecond=0), o["ETag"].strip('"'))
            for o in theirs.get("Contents", [])
        ]
        assert found.prefixes == [p["Prefix"] for p in theirs.get("CommonPrefixes", [])]
        assert found.token == theirs.get("NextContinuationToken")
        assert (found.token is not None) == theirs["IsTruncated"]

    @pytest.mark.parametrize("key", ["a+b", "a%2Bb", "%zz", "%", "a%C3%A9"])
    def test_keys_are_decoded_only_if_the_answer_says_so(self, key: str) -> None:
        body = one_entry(f"<Key>{key}</Key><Size>1</Size>")
        assert parse_page(body).entries[0].key == key
        told = body.replace(b"<IsTruncated>", b"<EncodingType>url</EncodingType><IsTruncated>")
        theirs = by_botocore("ListObjectsV2", told)["Contents"][0]["Key"]
        assert parse_page(told).entries[0].key == theirs

    @pytest.mark.parametrize("key", ["a%FF", "a%C3b", "a%C3+%A9"])
    def test_key_that_is_no_utf8_is_refused_not_guessed(self, key: str) -> None:
        told = PAGE.replace("a/c", key)
        with pytest.raises(UnexpectedResponseError, match="keys in UTF-8"):
            parse_page(told.encode())

    def test_entry_needs_neither_time_nor_etag(self) -> None:
        assert parse_page(one_entry("<Key>a</Key><Size> 7 </Size>")).entries == [
            ListedObject("a", 7, None, None)
        ]

    def test_weak_etag_is_none(self) -> None:
        body = one_entry('<Key>a</Key><Size>1</Size><ETag>W/"abc"</ETag>')
        assert parse_page(body).entries == [ListedObject("a", 1, None, None)]

    @pytest.mark.parametrize(
        "inner",
        [
            "",
            "<Size>1</Size>",
            "<Key/><Size>1</Size>",
            "<Key></Key><Size>1</Size>",
            "<Key>a</Key><Key>b</Key><Size>1</Size>",
            "<Key>a<b/>c</Key><Size>1</Size>",
            "<Key>a</Key>",
            "<Key>a</Key><Size/>",
            "<Key>a</Key><Size>1</Size><Size>1</Size>",
            *[
                f"<Key>a</Key><Size>{n}</Size>"
                for n in ("-1", "1.5", "1_0", "0x1", "\u0661", "\u00b2", "9" * 5000)
            ],
            "<Key>a</Key><Size>1</Size><LastModified>yesterday</LastModified>",
            "<Key>a</Key><LastModified>2024-13-02T03:04:05.000Z</LastModified><ETag>&quot;a&quot;</ETag><Size>1</Size>",
        ],
    )
    def test_entry_that_does_not_say_which_or_how_large_is_an_error(self, inner: str) -> None:
        with pytest.raises(UnexpectedResponseError, match="expected"):
            parse_page(one_entry(inner))
        good = PAGE.replace("</Contents>", f"</Contents><Contents>{inner}</Contents>", 1)
        with pytest.raises(UnexpectedResponseError, match="expected"):
            parse_page(good.encode())

    @pytest.mark.parametrize("inner", ["", "<Prefix/>", "<Name>a/</Name>"])
    def test_common_prefix_without_a_prefix_is_an_error(self, inner: str) -> None:
        with pytest.raises(UnexpectedResponseError, match="expected CommonPrefixes with Prefix"):
            parse_page(PAGE.replace("<Prefix>a/e/</Prefix>", inner).encode())

    @pytest.mark.parametrize("token", ["", "<NextContinuationToken/>", "<NextMarker>a/c</NextMarker>"])
    def test_truncated_page_without_a_token_is_an_error_not_the_end(self, token: str) -> None:
        body = re.sub("<NextCont.*</NextContinuationToken>", token, PAGE)
        with pytest.raises(UnexpectedResponseError, match="expected NextContinuationToken"):
            parse_page(body.encode())

    @pytest.mark.parametrize("told", ["", "<IsTruncated/>", "<IsTruncated>maybe</IsTruncated>"])
    def test_page_that_does_not_say_whether_it_is_the_last_is_an_error(self, told: str) -> None:
        with pytest.raises(UnexpectedResponseError, match="expected IsTruncated"):
            parse_page(PAGE.replace("<IsTruncated>true</IsTruncated>", told).encode())

    def test_last_page_has_no_token_whatever_else_it_says(self) -> None:
        assert parse_page(PAGE.replace("<IsTruncated>true", "<IsTruncated>false").encode()).token is None

    @pytest.mark.parametrize("root", ["ListAllMyBucketsResult", "html", "DeleteResult"])
    def test_document_of_another_kind_is_an_error(self, root: str) -> None:
        with pytest.raises(UnexpectedResponseError, match="expected ListBucketResult"):
            parse_page(PAGE.replace("ListBucketResult", root).encode())

    def test_message_shows_the_beginning_only(self) -> None:
        body = PAGE.replace("ListBucketResult", "Other").replace("models", "m" * 100_000)
        with pytest.raises(UnexpectedResponseError) as caught:
            parse_page(body.encode())
        assert "<Name>mmm" in str(caught.value)
        assert len(str(caught.value)) < 300
        with pytest.raises(UnexpectedResponseError) as caught:
            parse_page(b"\xff" + body.encode())
        assert len(str(caught.value)) < 300


def one_entry(inner: str) -> bytes:
    return (
        f"<ListBucketResult><IsTruncated>false</IsTruncated><Contents>{inner}</Contents></ListBucketResult>"
    ).encode()


PIECES = [
    *[
        "<!--",
        "-->",
        "<![CDATA[",
        "]]>",
        "<?x",
        "?>",
        "<?x ?>",
        "&amp;",
        "&lt;",
        "&#10;",
        "&nope;",
        "<",
        ">",
        "&",
    ],
    *[
        "<x>",
        "</x>",
        "<x/>",
        "<Contents>",
        "</Contents>",
        "<Contents/>",
        "<Key>k</Key>",
        "<Size>1</Size>",
    ],
    *[
        "</ListBucketResult>",
        "<ListBucketResult>",
        "<Error>",
        "<Owner>",
        "</Owner>",
        "<Owner><ID>i</ID></Owner>",
    ],
    *[
        "\r\n",
        " ",
        "\x01",
        "\x00",
        "\ufeff",
        "\ufffe",
        "\u0661",
        "\x85",
        "9",
        "%41",
        "+",
        "'",
        '"',
        "W/",
        "Z",
    ],
    *["<Contents x='1'>", "<n:Contents xmlns:n='u'>", "</n:Contents>", "<StorageClass>S</StorageClass>"],
    "<EncodingType>url</EncodingType>",
    "<Contents><Size>1</Size><Key>k</Key></Contents>",
    "<CommonPrefixes><Prefix>p</Prefix></CommonPrefixes>",
]


class TestPlainPage:
    """The way for pages as Amazon writes them, against the one for all others."""

    @pytest.mark.parametrize("old", ["", "<Prefix>a/</Prefix>", "<StorageClass>STANDARD</StorageClass>"])
    def test_it_is_the_way_taken(self, old: str) -> None:
        text = PAGE.replace(old, "") if old else PAGE
        assert xml_documents._plain_page(text) == xml_documents._any_page(ET.fromstring(text)) == PAGE_MEANS

    @pytest.mark.parametrize(
        "text",
        [
            PAGE.replace("<Contents>", "<!--<Contents>", 1).replace(
                "<CommonPrefixes>", "--><CommonPrefixes>", 1
            ),
            PAGE.replace("<Contents>", "<x><Contents>", 1).replace(
                "<CommonPrefixes>", "</x><CommonPrefixes>", 1
            ),
            PAGE.replace("<Contents>", "<![CDATA[<Contents>", 1).replace("<Common", "]]><Common", 1),
        ],
    )
    def test_entries_that_are_none_are_not_taken_for_some(self, text: str) -> None:
        assert xml_documents._plain_page(text) is None
        assert parse_page(text.encode()).entries == []

    def test_entry_of_another_shape_is_not_taken_for_the_place_of_the_others(self) -> None:
        other = "<Contents><Size>1</Size><Key>k</Key></Contents>"
        text = PAGE.replace("<Contents>", f"{other}<!--<Contents>", 1).replace("<Common", "--><Common", 1)
        assert parse_page(text.encode()).entries == [ListedObject("k", 1, None, None)]

    @pytest.mark.parametrize("piece", PIECES)
    def test_both_ways_agree_on_anything_inserted_anywhere(self, piece: str) -> None:
        ends = [found.start() for found in re.finditer("[<>]", PAGE)]
        for at in {*ends, *(end + 1 for end in ends), *(end + 2 for end in ends)}:
            both_ways(PAGE[:at] + piece + PAGE[at:])

    @thorough(300)
    @given(pages(), st.data())
    def test_both_ways_agree_on_whatever_comes(
        self, case: tuple[ListingPage, Style], data: st.DataObject
    ) -> None:
        text = document(*case).decode()
        for _ in range(data.draw(st.integers(0, 3))):
            text = damaged(text, data)
        event(both_ways(text))

    @thorough(1000)
    @given(st.data())
    def test_both_ways_agree_on_damaged_pages_of_amazon(self, data: st.DataObject) -> None:
        text = PAGE
        for _ in range(data.draw(st.integers(1, 3))):
            text = damaged(text, data)
        event(both_ways(text))


def both_ways(text: str) -> str:
    """Which way *text* went; it makes no difference."""
    plainly = outcome(lambda: xml_documents._plain_page(text))
    if plainly is None:
        return "any"
    assert plainly == outcome(lambda: xml_documents._any_page(xml_documents._tree(text)))
    return "plain"


def damaged(text: str, data: st.DataObject) -> str:
    """*text* with something inserted, taken away, doubled or exchanged, at tags or anywhere."""
    parts = re.split(r"(<[^>]*>)", text) if data.draw(st.booleans()) else [*text]
    at = data.draw(st.integers(0, len(parts) - 1))
    other = data.draw(st.integers(0, len(parts) - 1))
    match data.draw(st.sampled_from(["insert", "remove", "double", "exchange"])):
        case "insert":
            parts.insert(at, data.draw(st.sampled_from(PIECES)))
        case "remove":
            del parts[at : at + data.draw(st.integers(1, 20))]
        case "double":
            parts[at:at] = parts[at : at + data.draw(st.integers(1, 60))]
        case _:
            parts[at], parts[other] = parts[other], parts[at]
    return "".join(parts)


def outcome(call: Callable[[], object]) -> object:
    try:
        return call()
    except (UnexpectedResponseError, EmbeddedError) as error:
        return type(error)


class TestUnsound:
    @pytest.mark.parametrize("kind", PARSERS)
    def test_every_truncation_is_an_error_never_a_shorter_answer(self, kind: str) -> None:
        parse, text = PARSERS[kind]
        body = text.encode()
        parse(body)
        for end in range(len(body)):
            with pytest.raises(UnexpectedResponseError, match="expected whole XML"):
                parse(body[:end])

    def test_truncated_error_is_none(self) -> None:
        body = ERROR.encode()
        assert parse_error(body) is not None
        assert [end for end in range(len(body)) if parse_error(body[:end]) is not None] == []

    @pytest.mark.parametrize("kind", PARSERS)
    @pytest.mark.parametrize(
        "declared",
        [
            LAUGHS,
            "<!DOCTYPE a>",
            '<!DOCTYPE a SYSTEM "file:///etc/passwd">',
            '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
            '<!DOCTYPE a [<!ENTITY % x SYSTEM "http://127.0.0.1/">%x;]>',
        ],
    )
    def test_declarations_are_refused(self, kind: str, declared: str) -> None:
        parse, text = PARSERS[kind]
        for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"):
            body = (declared + text.removeprefix(DECLARATION)).encode(encoding)
            with pytest.raises(UnexpectedResponseError, match=r"XML without declarations|XML in UTF-8"):
                parse(body)
            assert parse_error((declared + ERROR.removeprefix(DECLARATION)).encode(encoding)) is None

    def test_the_laughs_are_not_expanded(self) -> None:
        text = LAUGHS + PAGE.removeprefix(DECLARATION).replace("a/c", "&lol9;")
        with pytest.raises(UnexpectedResponseError, match="XML without declarations"):
            parse_page(text.encode())

    @pytest.mark.parametrize("kind", PARSERS)
    def test_entity_that_nobody_declared_is_an_error(self, kind: str) -> None:
        parse, text = PARSERS[kind]
        with pytest.raises(UnexpectedResponseError, match="undefined entity"):
            parse(text.replace("</", "&nope;</", 1).encode())

    @pytest.mark.parametrize("kind", PARSERS)
    def test_success_with_an_error_inside_is_raised_as_what_it_says(self, kind: str) -> None:
        parse, _ = PARSERS[kind]
        with pytest.raises(EmbeddedError, match="PermanentRedirect: Use the <other> endpoint") as caught:
            parse(ERROR.encode())
        assert caught.value.refused == parse_error(ERROR.encode())
        assert pickle.loads(pickle.dumps(caught.value)).refused == caught.value.refused

    @pytest.mark.parametrize("kind", PARSERS)
    def test_blanks_before_the_document_are_passed_over(self, kind: str) -> None:
        parse, text = PARSERS[kind]
        assert parse(b" \n\r\t" * 1000 + text.encode() + b"\n") == parse(text.encode())

    @pytest.mark.parametrize("kind", PARSERS)
    @pytest.mark.parametrize(
        "body", [b"", b" ", b"{}", b"<html><br></html>", b"\xff\xfe", b"\0", b"<a/><b/>"]
    )
    def test_no_document_is_an_error(self, kind: str, body: bytes) -> None:
        parse, _ = PARSERS[kind]
        with pytest.raises(UnexpectedResponseError, match="expected"):
            parse(body)

    @pytest.mark.parametrize("kind", PARSERS)
    def test_depth_is_an_error_not_a_crash(self, kind: str) -> None:
        parse, _ = PARSERS[kind]
        body = b"<Error>" * 50_000 + b"</Error>" * 50_000
        with pytest.raises(UnexpectedResponseError, match="expected Error with Code"):
            parse(body)
        assert parse_error(body) is None


class TestError:
    def test_fields(self) -> None:
        assert parse_error(ERROR.encode()) == ErrorDocument(
            "PermanentRedirect",
            "Use the <other> endpoint.",
            "eu-west-1",
            {"Endpoint": "models.s3.eu-west-1.amazonaws.com", "HostId": "h+/="},
        )

    @pytest.mark.parametrize("namespace", ["", f" {AMAZON}", ' xmlns="urn:x"'])
    def test_namespace_does_not_matter(self, namespace: str) -> None:
        body = ERROR.replace("<Error>", f"<Error{namespace}>").encode()
        assert parse_error(body) == parse_error(ERROR.encode())

    @given(
        st.dictionaries(
            st.sampled_from(["Code", "Message", "Region", "Endpoint", "Key", "BucketName"]),
            st.text(XML_CHARS, min_size=1).filter(lambda text: text.strip() == text),
        )
    )
    def test_botocore_reads_the_same(self, fields: dict[str, str]) -> None:
        inner = "".join(f"<{name}>{written(text, encoded=False)}</{name}>" for name, text in fields.items())
        body = f"{DECLARATION}<Error>{inner}</Error>".encode()
        found = parse_error(body)
        if "Code" not in fields:
            assert found is None
            return
        theirs = by_botocore("ListObjectsV2", body, status=400)["Error"]
        assert found is not None
        assert theirs == fields
        ours = {**found.fields, "Code": found.code, "Message": found.message, "Region": found.region or ""}
        assert {name: text for name, text in ours.items() if text} == theirs

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<Error/>",
            b"<Error><Message>m</Message></Error>",
            b"<Error><Code/></Error>",
            b"<!doctype html><html><body>502 Bad Gateway</body></html>",
            b"<html><Error><Code>a</Code></Error></html>",
            b'{"Code": "NoSuchKey"}',
            b"<Code>NoSuchKey</Code>",
        ],
    )
    def test_what_is_no_error_document_is_none(self, body: bytes) -> None:
        assert parse_error(body) is None

    @given(st.binary())
    def test_it_never_raises_on_bytes(self, body: bytes) -> None:
        assert parse_error(body) is None

    @given(st.data())
    def test_it_never_raises_on_damaged_documents(self, data: st.DataObject) -> None:
        text = ERROR
        for _ in range(data.draw(st.integers(1, 3))):
            text = damaged(text, data)
        found = parse_error(text.encode(errors="replace"))
        assert found is None or found.code


class TestDelete:
    @given(st.lists(XML_KEYS, max_size=5))
    @example(["\r", "\n", "\t", " ", "\r\n", "]]>", "&amp;", "\x85\u2028"])
    def test_a_parser_finds_the_keys_exactly(self, keys: list[str]) -> None:
        namespace = "{http://s3.amazonaws.com/doc/2006-03-01/}"
        root = ET.fromstring(delete_request(keys))
        assert root.tag == f"{namespace}Delete"
        assert [key.text for key in root.findall(f"{namespace}Object/{namespace}Key")] == keys
        assert root.findtext(f"{namespace}Quiet") == "true"

    @pytest.mark.parametrize("key", ["\0", "a\x08", "\x1f", "\ufffe", "\uffff", "\ud800"])
    def test_key_that_xml_cannot_carry_is_refused(self, key: str) -> None:
        assert not can_be_xml(key)
        with pytest.raises(ValueError, match="cannot represent"):
            delete_request(["good", key])

    def test_can_be_xml_is_what_a_parser_takes(self) -> None:
        edges = [0xD7FF, 0xD800, 0xDFFF, 0xE000, 0xFDD0, *range(0xFFF0, 0x10010), 0x1FFFF, 0x10FFFF]
        for code in (*range(0x200), *edges):
            try:
                ET.fromstring(f"<a>&#{code};</a>")
            except ET.ParseError:
                parses = False
            else:
                parses = True
            assert (code, can_be_xml(chr(code))) == (code, parses)

    def test_empty_key_can_be_xml(self) -> None:
        assert can_be_xml("")

    def test_reasons_are_by_key(self) -> None:
        found = parse_deleted(DELETED.encode())
        assert {key: (why.code, why.message) for key, why in found.items()} == {
            "b&\r\nc": ("AccessDenied", "Access Denied"),
            "d": ("InternalError", "Please try again"),
        }

    @pytest.mark.parametrize("namespace", ["", AMAZON, 'xmlns="urn:x"'])
    def test_nothing_to_say_is_success(self, namespace: str) -> None:
        assert parse_deleted(f"{DECLARATION}<DeleteResult {namespace}/>".encode()) == {}

    @given(
        st.dictionaries(XML_KEYS, st.text(string.ascii_letters, min_size=1), max_size=4), st.lists(XML_KEYS)
    )
    def test_botocore_reads_the_same(self, failed: dict[str, str], done: list[str]) -> None:
        errors = "".join(
            f"<Error><Key>{written(key, encoded=False)}</Key><Code>{code}</Code><Message>m</Message></Error>"
            for key, code in failed.items()
        )
        deleted = "".join(f"<Deleted><Key>{written(key, encoded=False)}</Key></Deleted>" for key in done)
        body = f"{DECLARATION}<DeleteResult {AMAZON}>{deleted}{errors}</DeleteResult>".encode()
        theirs = by_botocore("DeleteObjects", body).get("Errors", [])
        found = parse_deleted(body)
        assert (
            {key: why.code for key, why in found.items()}
            == {why["Key"]: why["Code"] for why in theirs}
            == failed
        )

    @pytest.mark.parametrize("inner", ["", "<Key>a</Key>", "<Code>a</Code>", "<Key/><Code>a</Code>"])
    def test_reason_without_key_or_code_is_an_error(self, inner: str) -> None:
        with pytest.raises(UnexpectedResponseError, match="expected Error with"):
            parse_deleted(f"<DeleteResult><Error>{inner}</Error></DeleteResult>".encode())


class TestCopied:
    @pytest.mark.parametrize("root", ["CopyObjectResult", "CopyPartResult"])
    @pytest.mark.parametrize("namespace", ["", AMAZON, 'xmlns="urn:x"'])
    def test_etag_of_either_copy(self, root: str, namespace: str) -> None:
        text = COPIED.replace(AMAZON, namespace).replace("CopyObjectResult", root)
        assert parse_copied(text.encode()) == "d41d8cd98f00b204e9800998ecf8427e"

    def test_copy_without_etag_is_an_error(self) -> None:
        with pytest.raises(UnexpectedResponseError, match="a copy with its ETag"):
            parse_copied(b"<CopyObjectResult/>")

    def test_answer_to_something_else_is_an_error(self) -> None:
        with pytest.raises(UnexpectedResponseError, match="expected CopyObjectResult or CopyPartResult"):
            parse_copied(PAGE.encode())


@pytest.mark.parametrize(
    ("text", "etag"),
    [
        ('"abc"', "abc"),
        ("abc", "abc"),
        (' "abc"\r\n', "abc"),
        ('"abc-2"', "abc-2"),
        ('W/"abc"', None),
        (' W/"abc"', None),
        ('""', None),
        ("", None),
        (None, None),
    ],
)
def test_etag_is_opaque_or_none(text: str | None, etag: str | None) -> None:
    assert etag_of(text) == etag


class TestMoments:
    @pytest.mark.parametrize(
        "text",
        [
            "2024-01-02T03:04:05.678Z",
            "2024-01-02T03:04:05.999999999Z",
            "2024-01-02T03:04:05Z",
            "2024-01-02T03:04:05",
            "2024-01-02T05:04:05.1+02:00",
            "20240102T030405Z",
            " 2024-01-02T03:04:05.000Z\n",
        ],
    )
    def test_spellings_of_one_second(self, text: str) -> None:
        found = moment_of(text)
        assert found == datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
        assert found.tzinfo is UTC

    @given(st.datetimes(timezones=st.just(UTC)))
    def test_every_moment_loses_its_fraction_only(self, moment: datetime) -> None:
        assert moment_of(moment.isoformat()) == moment.replace(microsecond=0)

    @pytest.mark.parametrize(
        "text", ["", "now", "2024-13-01T00:00:00Z", "0001-01-01T00:00:00+23:00", "x" * 1000]
    )
    def test_what_is_no_moment_is_an_error(self, text: str) -> None:
        with pytest.raises(UnexpectedResponseError, match="expected moment"):
            moment_of(text)

    @given(SECONDS)
    def test_listing_and_head_agree(self, moment: datetime) -> None:
        listed = moment_of(moment.replace(tzinfo=None).isoformat() + ".678Z")
        assert listed == http_date(format_datetime(moment, usegmt=True)) == moment


class TestHttpDate:
    @given(SECONDS)
    def test_email_utils_reads_the_same(self, moment: datetime) -> None:
        text = format_datetime(moment, usegmt=True)
        found = http_date(text)
        assert found == parsedate_to_datetime(text) == moment
        assert found is not None
        assert found.tzinfo is UTC

    @pytest.mark.parametrize(
        "text",
        [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 10:49:37 +0200",
            "Sun, 06 Nov 1994 08:49:37 -0000",
        ],
    )
    def test_formats_of_the_standard_and_their_neighbours(self, text: str) -> None:
        assert http_date(text) == datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "GMT",
            " GMT",
            "yesterday",
            "Sun, 31 Feb 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 25:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:61 GMT",
            "Sun, 06 Nov 1994 08:49:37.5 GMT",
            "1994-11-06T08:49:37Z",
        ],
    )
    def test_what_is_no_date_is_none(self, text: str) -> None:
        assert http_date(text) is None

    @pytest.mark.soak
    @given(
        st.text()
        | st.from_regex(r"[A-Z][a-z]{2}, .{2} [A-Z][a-z]{2} .{4} .{2}:.{2}:.{2} GMT", fullmatch=True)
    )
    def test_it_never_raises(self, text: str) -> None:
        found = http_date(text)
        assert found is None or found.utcoffset() == timedelta(0)

    @given(SECONDS, st.integers(-23, 23))
    def test_offsets_are_taken_into_account(self, moment: datetime, hours: int) -> None:
        try:
            text = format_datetime(moment.astimezone(timezone(timedelta(hours=hours))))
        except OverflowError:
            return
        assert http_date(text) == moment
