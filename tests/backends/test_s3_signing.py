from __future__ import annotations

import random
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import botocore.auth
import pytest
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.utils import percent_encode, percent_encode_sequence
from hypothesis import example, given
from hypothesis import strategies as st

from storage_backend.backends.s3.signing import (
    LEFT_OUT,
    UNSIGNED,
    Signer,
    SigningCredentials,
    encode_query,
    quote_key,
)
from tests.tiers import thorough

pytestmark = pytest.mark.quick

HOST = "examplebucket.s3.amazonaws.com"
EXAMPLE_KEYS = SigningCredentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
EXAMPLE_MOMENT = datetime(2013, 5, 24, tzinfo=UTC)
EMPTY = sha256(b"").hexdigest()


@dataclass(frozen=True)
class Request:
    """What is to be signed; *body* None stands for a body that the signature does not cover."""

    method: str = "GET"
    path: str = "/"
    query: str = ""
    headers: dict[str, str] = field(default_factory=lambda: {"host": HOST})
    body: bytes | None = b""
    keys: SigningCredentials = EXAMPLE_KEYS
    moment: datetime = EXAMPLE_MOMENT
    region: str = "us-east-1"
    service: str = "s3"


def signed(request: Request, signer: Signer | None = None) -> dict[str, str]:
    """The headers after our signer."""
    headers = dict(request.headers)
    (signer or Signer(request.region, request.service)).sign(
        request.method,
        request.path,
        request.query,
        headers,
        request.keys,
        request.moment.timestamp(),
        UNSIGNED if request.body is None else sha256(request.body).hexdigest(),
    )
    return headers


def signature(request: Request) -> str:
    return signed(request)["authorization"].rpartition("Signature=")[2]


COVERED, UNCOVERED = (Config(s3={"payload_signing_enabled": covered}) for covered in (True, False))


def signed_by_botocore(request: Request, kind: type[SigV4Auth] = S3SigV4Auth) -> dict[str, str]:
    """The headers after botocore's signer, with lower-case names."""
    if not hasattr(botocore.auth, "get_current_datetime"):  # before 1.41
        pytest.skip("this botocore's signer takes its time from the system alone")
    query = f"?{request.query}" if request.query else ""
    theirs = AWSRequest(
        method=request.method,
        url=f"https://{HOST}{request.path}{query}",
        headers=request.headers,
        data=request.body,
    )
    theirs.context["client_config"] = UNCOVERED if request.body is None else COVERED
    keys = Credentials(request.keys.access_key, request.keys.secret_key, request.keys.token)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.auth, "get_current_datetime", lambda: request.moment.replace(tzinfo=None))
        kind(keys, request.service, request.region).add_auth(theirs)
    return {name.lower(): value for name, value in theirs.headers.items()}


# Every printable ASCII character, control characters, some of each length in UTF-8, and what looks encoded already.
CHARACTERS = "".join(map(chr, range(128))) + "\x80\x85\xa0é߿ࠀ€\ufeff\uffff\U0001f600\U0010ffff"
SEGMENTS = [
    "",
    ".",
    "..",
    "...",
    "~",
    "+",
    "%",
    "%2F",
    "%2f",
    "%zz",
    " ",
    "a b",
    "é",
    "e\u0301",
    "a=b&c",
    "#?",
]
keys_of_objects = st.lists(st.sampled_from(SEGMENTS) | st.text(CHARACTERS, max_size=8), max_size=5).map(
    "/".join
)

# What may stand in the first line of a request, so that a path or query that quote_key would not make is signed as it is.
WIRE = "abzAZ019-._~!$'()*+,;:@/"
as_sent = st.lists(
    st.sampled_from([*WIRE, "%20", "%2F", "%2f", "%C3%A9", "//", "/./", "/../"]), max_size=12
).map("".join)
paths = st.builds("/{}".format, keys_of_objects.map(quote_key) | as_sent)

words = st.sampled_from(["", "a", "a-", "a0", "a.", "A", "b", "prefix", "uploads", "partNumber", "x-id"])
terms = words | st.text(CHARACTERS, max_size=6)
pieces = st.sampled_from(["", "=", "==", "a", "a=", "a==", "=a", "a=b=c", "a-b=", "a%2Fb=%2f", "a+b=+"])
queries = (
    st.lists(st.tuples(terms, terms), max_size=6).map(encode_query)
    | st.lists(pieces | st.builds("{}={}".format, words, words), max_size=6).map("&".join)
)  # fmt: skip

NAMES = [
    "amz-sdk-request", "cache-control", "content-length", "content-md5", "content-type", "if-match", "if-none-match",
    "range", "x-amz-acl", "x-amz-checksum-crc32", "x-amz-copy-source", "x-amz-meta-", "x-amz-meta-a", "x-amz-meta-a-b",
    "x-amz-meta-a.b", "x-amz-meta-a_b", "x-amz-meta-a0", "x-amz-storage-class", "x-amz-tagging",
]  # fmt: skip
STALE = ["authorization", "x-amz-content-sha256", "x-amz-date"]  # as an earlier signing left them
names = st.sampled_from([*NAMES, *sorted(LEFT_OUT), *STALE]) | st.text("abz019-_.", max_size=5).map(
    "x-amz-meta-{}".format
)
values = (
    st.text("ab,;=\"/\\'\t ", max_size=10)
    | st.text(CHARACTERS, max_size=10)
    | st.sampled_from(["bytes=0-9", "  a   b  ", "\ta\t\tb\t", "a\r\n b", "a\xa0\x85b", " ", '"a  b"', "é"])
)
headers = st.dictionaries(names, values, max_size=6).map(lambda more: {**more, "host": HOST})

secrets = st.sampled_from(["wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "a+b/c==", "é€"]) | st.text(max_size=5)
tokens = st.none() | st.sampled_from(["", "IQoJb3JpZ2luX2VjEAAaCXVzLWVhc3QtMSJ", "a+b/c==", " a  b "])
credentials = st.builds(
    SigningCredentials, st.sampled_from(["AKIAIOSFODNN7EXAMPLE", "minio admin", "a"]), secrets, tokens
)
moments = st.datetimes(datetime(2000, 1, 1), datetime(2100, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001 - wants plain ones
regions = st.sampled_from(["us-east-1", "eu-central-1", "cn-north-1", "auto", ""]) | st.text(
    "abz-019", max_size=6
)
services = st.sampled_from(["s3", "s3-object-lambda", "s3-outposts"])
bodies = st.none() | st.sampled_from([b"", b"\0", b"Welcome to Amazon S3."])
methods = st.sampled_from(["GET", "HEAD", "PUT", "POST", "DELETE"])

agreement = thorough(2000, deadline=None, derandomize=True, database=None)


class TestAgreementWithBotocore:
    """One part of a request is odd at a time, so that each has its share of examples, and then all are at once."""

    @agreement
    @given(asked=st.builds(Request, path=paths))
    def test_whatever_the_key(self, asked: Request) -> None:
        assert signed(asked) == signed_by_botocore(asked)

    @agreement
    @given(asked=st.builds(Request, query=queries))
    def test_whatever_the_query(self, asked: Request) -> None:
        assert signed(asked) == signed_by_botocore(asked)

    @agreement
    @given(asked=st.builds(Request, headers=headers))
    def test_whatever_the_headers(self, asked: Request) -> None:
        assert signed(asked) == signed_by_botocore(asked)

    @agreement
    @given(
        asked=st.builds(
            Request, methods, body=bodies, keys=credentials, moment=moments, region=regions, service=services
        )
    )
    def test_whatever_the_credentials_the_clock_the_region_and_the_body(self, asked: Request) -> None:
        assert signed(asked) == signed_by_botocore(asked)

    @agreement
    @given(
        asked=st.builds(
            Request, methods, paths, queries, headers, bodies, credentials, moments, regions, services
        )
    )
    def test_whatever_the_request(self, asked: Request) -> None:
        assert signed(asked) == signed_by_botocore(asked)

    def test_other_services_sign_plain_requests_alike(self) -> None:
        """Other services encode a path once more; where there is nothing to encode, one signer fits all."""
        asked = Request(
            query="Action=GetCallerIdentity&Version=2011-06-15",
            headers={"host": HOST, "x-amz-content-sha256": EMPTY},
            service="sts",
        )
        assert signed(asked) == signed_by_botocore(asked, SigV4Auth)

    def test_every_header_that_botocore_leaves_out_is_left_out(self) -> None:
        assert frozenset(botocore.auth.SIGNED_HEADERS_BLACKLIST) <= LEFT_OUT

    def test_a_second_ends_when_it_ends(self) -> None:
        late = Request(moment=EXAMPLE_MOMENT - timedelta(microseconds=1))
        assert signed(late)["x-amz-date"] == "20130523T235959Z"
        assert signed(late) == signed_by_botocore(late)


class TestPublishedExamples:
    """ "Signature Calculations for the Authorization Header: Transferring Payload in a Single Chunk", Amazon S3 API Reference."""

    def test_get_of_a_range(self) -> None:
        asked = Request(path="/test.txt", headers={"host": HOST, "range": "bytes=0-9"})
        assert signed(asked)["authorization"] == (
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
            "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, "
            "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        )

    def test_put_with_a_date_and_a_storage_class(self) -> None:
        asked = Request(
            method="PUT",
            path=f"/{quote_key('test$file.text')}",
            headers={
                "host": HOST,
                "date": "Fri, 24 May 2013 00:00:00 GMT",
                "x-amz-storage-class": "REDUCED_REDUNDANCY",
            },
            body=b"Welcome to Amazon S3.",
        )
        assert signature(asked) == "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"

    def test_get_of_the_lifecycle(self) -> None:
        asked = Request(query="lifecycle")
        assert signature(asked) == "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"

    @pytest.mark.parametrize("query", ["max-keys=2&prefix=J", "prefix=J&max-keys=2"])
    def test_list_of_objects(self, query: str) -> None:
        assert (
            signature(Request(query=query))
            == "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
        )


class TestSigningAgain:
    def test_signed_headers_can_be_signed_with_later_keys_at_a_later_time(self) -> None:
        first = Request(keys=replace(EXAMPLE_KEYS, token="before"))
        later = Request(
            keys=SigningCredentials("other", "other", "after"),
            moment=EXAMPLE_MOMENT + timedelta(days=1),
            body=None,
        )
        assert signed(replace(later, headers=signed(first))) == signed(later)

    def test_token_of_earlier_keys_does_not_stay(self) -> None:
        first = Request(keys=replace(EXAMPLE_KEYS, token="before"))
        assert signed(replace(first, headers=signed(first), keys=EXAMPLE_KEYS)) == signed(Request())


class TestSharedSigner:
    def test_threads_with_changing_keys_and_days_sign_as_one_does(self) -> None:
        chance = random.Random(4)
        work = [
            Request(
                path=f"/{number}",
                keys=SigningCredentials("AKID", f"secret {chance.randrange(6)}"),
                moment=EXAMPLE_MOMENT + timedelta(days=chance.randrange(3), seconds=chance.randrange(3)),
            )
            for number in range(8000)
        ]
        expected = [signed(asked) for asked in work]
        shared = Signer("us-east-1")
        threads = 16
        start = threading.Barrier(threads)

        def run(first: int) -> list[dict[str, str]]:
            start.wait()
            return [signed(asked, shared) for asked in work[first::threads]]

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)  # seconds; threads take turns within a call, not after hundreds of them
        try:
            with ThreadPoolExecutor(threads) as pool:
                found = list(pool.map(run, range(threads)))
        finally:
            sys.setswitchinterval(interval)
        assert found == [expected[first::threads] for first in range(threads)]

    def test_only_the_latest_keys_are_kept(self) -> None:
        class Secret(str):
            """One that can be watched."""

        signer = Signer("us-east-1")
        watched: list[weakref.ref[Secret]] = []
        for number in range(1000):
            secret = Secret(number)
            watched.append(weakref.ref(secret))
            signed(Request(keys=SigningCredentials("AKID", secret)), signer)
        del secret
        kept = [number for number, reference in enumerate(watched) if reference() is not None]
        assert kept == [996, 997, 998, 999]


class TestKeys:
    def test_representation_shows_neither_secret_nor_token(self) -> None:
        keys = SigningCredentials("AKID", "a secret", "a token")
        assert repr(keys) == f"{keys}" == "SigningCredentials(access_key='AKID')"

    def test_signer_shows_no_secret(self) -> None:
        signer = Signer("us-east-1")
        signed(Request(), signer)
        assert EXAMPLE_KEYS.secret_key not in repr(signer)


class TestEncoding:
    @agreement
    @given(key=keys_of_objects | st.text())
    @example(key=CHARACTERS)
    @example(key="a\n")  # "$" in a regular expression would let it pass
    def test_a_key_is_encoded_as_botocore_encodes_it(self, key: str) -> None:
        # botocore.serialize does so for a place in a path that takes slashes, as "/{Key+}" does.
        assert quote_key(key) == percent_encode(key, safe="/~")

    @agreement
    @given(pairs=st.lists(st.tuples(terms | st.text(), terms | st.text()), max_size=4))
    @example(pairs=[(CHARACTERS, CHARACTERS)])
    @example(pairs=[("a\n", "a\n")])
    def test_a_query_is_encoded_as_botocore_encodes_it(self, pairs: list[tuple[str, str]]) -> None:
        assert encode_query(pairs) == encode_query(iter(pairs)) == percent_encode_sequence(pairs)

    @pytest.mark.parametrize("encode", [quote_key, lambda text: encode_query([(text, "")])])
    def test_a_lone_surrogate_is_refused(self, encode: Callable[[str], str]) -> None:
        with pytest.raises(UnicodeEncodeError):
            encode("a\ud800")
