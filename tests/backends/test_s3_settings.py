"""What S3Storage is told: parameters, secrets, regions, endpoints, proxies and credentials that end; and URLs and copies."""

from __future__ import annotations

import inspect
import io
import json
import os
import pickle
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import boto3
import pytest

from storage_backend import AuthenticationError, ConfigurationError, NotFoundError, S3Storage, open_storage
from storage_backend.backends.s3.settings import MIB
from storage_backend.testing.subject import same
from tests.backends.test_s3 import storage_at
from tests.backends.test_s3_responses import boto3_client
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.s3_server_store import Settings as Limits
from tests.s3_servers import BucketPlace

LARGE = 11 * MIB


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's accounts, proxies and unfinished uploads."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


@pytest.fixture
def server() -> Iterator[S3Server]:
    with S3Server() as server:
        server.create_bucket("bucket")
        server.put("bucket", "x", b"hello")
        yield server


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


Make = Callable[..., S3Storage]


@pytest.fixture
def make(server: S3Server, stack: ExitStack) -> Make:
    def make(prefix: str = "", *, at: S3Server = server, bucket: str = "bucket", **options: Any) -> S3Storage:
        place = BucketPlace(at.url, bucket, ACCESS_KEY, SECRET_KEY, at.region)
        return stack.enter_context(storage_at(place, prefix, **options))

    return make


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's keys in boto3's own variables."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


def _agents(server: S3Server) -> set[str]:
    return {record.headers["user-agent"].partition("/")[0] for record in server.actions}


WRONG: list[tuple[str, Any]] = [
    ("bucket", ""),
    ("bucket", None),
    ("bucket", b"bucket"),
    ("prefix", "a\0b"),
    ("prefix", "a/../b"),
    ("prefix", "p" * 1025),
    ("prefix", None),
    ("region", 1),
    ("endpoint_url", "localhost:9000"),
    ("endpoint_url", "ftp://localhost"),
    ("endpoint_url", "https://"),
    ("endpoint_url", "https://user:password@localhost"),
    ("endpoint_url", "https://localhost?x=1"),
    ("endpoint_url", "https://localhost#x"),
    ("endpoint_url", "https://[::1"),
    ("endpoint_url", "https://localhost:port"),
    ("endpoint_url", "https://localhost:99999"),
    ("endpoint_url", 1),
    ("access_key", 1),
    ("profile", 1),
    ("max_concurrency", 0),
    ("max_concurrency", True),
    ("max_concurrency", 1.5),
    ("max_concurrency", "16"),
    ("attempts", 0),
    ("multipart_chunk_size", 5 * MIB - 1),
    ("multipart_chunk_size", (5 << 30) + 1),
    ("multipart_chunk_size", "8"),
    ("multipart_chunk_size", 8e6),
    ("multipart_threshold", 0),
    ("multipart_threshold", (5 << 30) + 1),
    ("multipart_threshold", None),
    ("storage_class", 1),
    ("server_side_encryption", 1),
    ("sse_kms_key_id", "key"),
    ("request_payer", 1),
    ("content_type", 1),
    ("acl", 1),
    ("addressing_style", "dns"),
    ("addressing_style", None),
    ("ca_bundle", "/nowhere/ca.pem"),
    ("ca_bundle", 1),
    ("checksum", "sha512"),
    ("checksum", None),
    ("connect_timeout", 0),
    ("connect_timeout", None),
    ("io_timeout", -1),
    ("io_timeout", float("nan")),
    ("io_timeout", float("inf")),
    ("io_timeout", "60"),
]


class TestParameters:
    @pytest.mark.parametrize(("name", "value"), WRONG)
    def test_wrong_value_is_named(self, name: str, value: Any) -> None:
        arguments = {"bucket": "bucket", name: value}
        with pytest.raises(ConfigurationError, match=name) as caught:
            S3Storage(**arguments)
        assert caught.value.parameter == name
        assert not caught.value.retryable

    @pytest.mark.parametrize(
        ("arguments", "name"),
        [
            ({"access_key": "a"}, "secret_key"),
            ({"secret_key": "s3cret"}, "access_key"),
            ({"session_token": "s3cret"}, "session_token"),
            ({"access_key": "a", "secret_key": "s3cret", "profile": "p"}, "profile"),
            ({"access_key": "a", "secret_key": "s3cret", "anonymous": True}, "anonymous"),
            ({"profile": "p", "anonymous": True}, "anonymous"),
            ({"accelerate": True, "endpoint_url": "https://localhost"}, "accelerate"),
            ({"accelerate": True, "addressing_style": "path"}, "accelerate"),
        ],
    )
    def test_contradiction_is_named(self, arguments: dict[str, Any], name: str) -> None:
        with pytest.raises(ConfigurationError, match=name) as caught:
            S3Storage("bucket", **arguments)
        assert caught.value.parameter == name
        assert "s3cret" not in str(caught.value)

    def test_password_of_an_endpoint_is_not_repeated(self) -> None:
        with pytest.raises(ConfigurationError) as caught:
            S3Storage("bucket", endpoint_url="https://user:pa55word@localhost")
        assert "pa55word" not in repr(caught.value)

    @pytest.mark.parametrize(
        ("given", "found"),
        [("", ""), ("/", ""), ("a", "a"), ("/a//b/", "a/b"), ("a/b/", "a/b"), ("//a", "a"), ("ä/ b", "ä/ b")],
    )
    def test_slashes_of_a_prefix_do_not_matter(self, given: str, found: str) -> None:
        storage = S3Storage("bucket", given)
        assert (storage.bucket, storage.prefix) == ("bucket", found)

    def test_prefix_ends_at_a_slash(self, server: S3Server, make: Make) -> None:
        for key in ("mod", "mod/a", "mod/b/c", "models/a", "mod-2", "mod/"):
            server.put("bucket", key, b"")
        storage = make("mod")
        skipped: list[object] = []
        assert [info.identifier for info in storage.scan(on_skip=skipped.append)] == ["a", "b/c"]
        assert len(skipped) == 1  # "mod/" itself
        assert storage.list("*") == ["a"]
        assert not storage.exists("els/a")
        assert storage.delete_many(storage.list()) == 2
        assert list(server.objects("bucket")) == ["mod", "mod-2", "mod/", "models/a", "x"]

    def test_parameters_of_objects_are_sent(self, server: S3Server, make: Make) -> None:
        storage = make(
            storage_class="STANDARD_IA",
            server_side_encryption="aws:kms",
            sse_kms_key_id="key",
            acl="bucket-owner-full-control",
            request_payer="requester",
            content_type="application/x-test",
            multipart_threshold=5 * MIB,
        )
        storage.write("new", b"1")
        storage.write_stream("large", io.BytesIO(bytes(LARGE)))
        first = {"PutObject", "CreateMultipartUpload"}
        begun = [record.headers for record in server.actions if record.operation in first]
        assert len(begun) == 2
        for headers in begun:
            assert headers["x-amz-storage-class"] == "STANDARD_IA"
            assert headers["x-amz-server-side-encryption"] == "aws:kms"
            assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "key"
            assert headers["x-amz-acl"] == "bucket-owner-full-control"
            assert headers["content-type"] == "application/x-test"
        assert {record.headers.get("x-amz-request-payer") for record in server.actions} == {"requester"}

    def test_requester_pays_for_every_verb(self, server: S3Server, make: Make, tmp_path: Path) -> None:
        storage = make(request_payer="requester")
        storage.read("x")
        storage.copy("x", "y")
        storage.delete("y")
        storage.delete_many(["x"])
        assert list(storage.scan()) == []
        storage.abort_incomplete_uploads()
        assert {record.headers.get("x-amz-request-payer") for record in server.actions} == {"requester"}

    def test_anonymous_requests_are_not_signed(self) -> None:
        with S3Server(anonymous=True) as server:
            server.create_bucket("bucket")
            with S3Storage("bucket", endpoint_url=server.url, anonymous=True) as storage:
                storage.write("x", b"hello")
                assert storage.read("x") == b"hello"
                assert storage.get_url("x") == f"{server.url}/bucket/x"
            assert not any("authorization" in record.headers for record in server.actions)
            assert _agents(server) == {"storage-backend"}


class TestSecrets:
    @pytest.fixture
    def referred(self, server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Storage:
        monkeypatch.setenv("SB_ACCESS", ACCESS_KEY)
        (tmp_path / "secret").write_text(f"{SECRET_KEY}\n")
        return S3Storage(
            "bucket",
            "pre",
            endpoint_url=server.url,
            region="us-east-1",
            access_key="env:SB_ACCESS",
            secret_key=f"file:{tmp_path / 'secret'}",
        )

    def test_secrets_by_reference(self, referred: S3Storage) -> None:
        with referred as storage:
            storage.write("y", b"1")
            assert storage.read("y") == b"1"

    def test_pickle_holds_no_secret_and_works(self, referred: S3Storage) -> None:
        with referred as storage:
            storage.write("y", b"1")  # with a client and a connection
            data = pickle.dumps(storage)
            assert SECRET_KEY.encode() not in data
            assert ACCESS_KEY.encode() not in data
            with pickle.loads(data) as again:
                assert again.read("y") == b"1"
                assert (again.location, again.prefix) == (storage.location, "pre")

    @pytest.mark.parametrize("name", ["secret_key", "session_token"])
    def test_literal_secret_refuses_to_be_pickled(self, name: str) -> None:
        given = {"access_key": "env:A", "secret_key": "env:S", "session_token": "env:T", name: "s3cret"}
        storage = S3Storage("bucket", **given)  # type: ignore[arg-type]  # strings by name
        with pytest.raises(ConfigurationError, match=name) as caught:
            pickle.dumps(storage)
        assert "s3cret" not in str(caught.value)
        assert caught.value.parameter == name

    def test_given_client_refuses_to_be_pickled(self, server: S3Server) -> None:
        client = boto3.client("s3", region_name="us-east-1", endpoint_url=server.url)
        with pytest.raises(ConfigurationError, match="client") as caught:
            pickle.dumps(S3Storage("bucket", client=client))
        assert caught.value.parameter == "client"

    def test_no_representation_shows_a_secret(self, server: S3Server, make: Make) -> None:
        storage = make(session_token="t0ken")
        for text in (repr(storage), storage.location, repr(storage.__dict__), str(storage)):
            assert SECRET_KEY not in text
            assert "t0ken" not in text
        assert repr(storage) == f"S3Storage('{storage.location}')"

    @pytest.mark.parametrize(
        ("secret", "reason"), [("env:SB_NOWHERE", "SB_NOWHERE"), ("file:/nowhere/secret", "/nowhere/secret")]
    )
    def test_reference_to_nothing_is_named(self, server: S3Server, secret: str, reason: str) -> None:
        storage = S3Storage("bucket", endpoint_url=server.url, access_key="a", secret_key=secret)
        with pytest.raises(ConfigurationError, match=reason) as caught:
            storage.read("x")
        assert caught.value.parameter == "secret_key"


@pytest.mark.usefixtures("keys")
class TestLocation:
    @pytest.mark.parametrize("prefix", ["", "a/b", "ä ?#&%/+", "a=b"])
    def test_it_opens_the_same_place_again(self, server: S3Server, prefix: str) -> None:
        with S3Storage("bucket", prefix, endpoint_url=server.url, region="us-east-1") as storage:
            storage.write("y", b"1")
            with open_storage(storage.location) as again:
                assert isinstance(again, S3Storage)
                assert again.location == storage.location
                assert (again.bucket, again.prefix) == ("bucket", storage.prefix)
                assert again.read("y") == b"1"

    def test_profile_and_anonymous_are_in_it(self) -> None:
        assert S3Storage("b", profile="me").location == "s3://b?profile=me"
        assert S3Storage("b", "p", anonymous=True).location == "s3://b/p?anonymous=true"
        assert S3Storage("b", "p", region="eu-west-1").location == "s3://b/p?region=eu-west-1"


class TestRegion:
    def test_argument_variables_profile_in_order(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "config").write_text(
            "[default]\nregion = ap-south-1\n[profile other]\nregion = sa-east-1\n"
        )

        def region(**options: Any) -> str:
            monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
            return str(S3Storage("bucket", **options).client.meta.region_name)

        assert region() == "ap-south-1"
        assert region(profile="other") == "sa-east-1"
        monkeypatch.setenv("AWS_PROFILE", "other")
        assert region() == "sa-east-1"
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-2")
        assert region() == "eu-west-2"
        assert region(profile="other") == "eu-west-2"
        monkeypatch.setenv("AWS_REGION", "eu-west-1")
        assert region() == "eu-west-1"
        assert region(region="us-west-2") == "us-west-2"
        monkeypatch.setenv("AWS_REGION", "")
        assert region() == "eu-west-2"

    @pytest.mark.usefixtures("keys")
    def test_requests_are_signed_for_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_REGION", "eu-west-1")
        with S3Server(region="eu-west-1") as server:
            server.create_bucket("bucket")
            with S3Storage("bucket", endpoint_url=server.url) as storage:
                storage.write("x", b"")
                storage.abort_incomplete_uploads()
            assert server.rejected == []


@pytest.mark.usefixtures("keys")
class TestEndpoint:
    def test_of_the_environment(self, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
        with S3Storage("bucket", region="us-east-1") as storage:
            assert storage.read("x") == b"hello"
            storage.write_stream("large", io.BytesIO(b"1"))
            assert storage.endpoint == server.url
        assert _agents(server) == {"storage-backend"}

    def test_argument_comes_first(self, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
        with S3Storage("bucket", region="us-east-1", endpoint_url=server.url) as storage:
            assert storage.read("x") == b"hello"

    def test_virtual_style_puts_the_bucket_into_the_host(self, server: S3Server) -> None:
        with S3Storage(
            "bucket",
            region="us-east-1",
            endpoint_url=f"http://localhost:{server.port}",
            addressing_style="virtual",
        ) as storage:
            assert storage.client.meta.config.s3["addressing_style"] == "virtual"
            assert storage.get_url("x").startswith(f"http://bucket.localhost:{server.port}/x?")

    def test_trailing_slash_does_not_matter(self, server: S3Server, make: Make) -> None:
        with S3Storage("bucket", region="us-east-1", endpoint_url=f"{server.url}/") as storage:
            assert storage.read("x") == b"hello"
            assert make("copies").copy_from(storage, "x")


class _Proxy(BaseHTTPRequestHandler):
    """Passes requests on, and keeps their targets."""

    protocol_version = "HTTP/1.1"
    targets: list[str]

    def handle_one_request(self) -> None:
        self.close_connection = True
        super().handle_one_request()

    def _pass_on(self) -> None:
        self.targets.append(self.path)
        size = int(self.headers.get("content-length", 0))
        body = self.rfile.read(size) if size else None
        request = urllib.request.Request(self.path, body, dict(self.headers), method=self.command)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            answer: Any = opener.open(request, timeout=30)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            content = answer.read()
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                    self.send_header(name, value)
            length = answer.headers.get("content-length") if self.command == "HEAD" else len(content)
            self.send_header("Content-Length", str(length or 0))
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on  # noqa: N815 - names of http.server

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _served(stack: ExitStack, handler: type[BaseHTTPRequestHandler]) -> str:
    """The URL of an HTTP server with *handler*, until *stack* ends."""
    server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    stack.callback(thread.join)
    stack.callback(server.shutdown)
    return f"http://127.0.0.1:{server.server_port}"


class TestProxy:
    def test_requests_go_through_boto3_to_the_proxy(
        self, server: S3Server, make: Make, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Proxy(_Proxy):
            targets: list[str] = []  # noqa: RUF012 - of this test alone

        monkeypatch.setenv("HTTP_PROXY", _served(stack, Proxy))
        storage = make()
        assert storage.read("x") == b"hello"
        storage.write("y", b"1")
        assert storage.list() == ["x", "y"]
        assert storage.size("y") == 1
        assert _agents(server) == {"Boto3"}
        assert len(Proxy.targets) == len(server.actions) == 4
        assert all(target.startswith(f"{server.url}/bucket") for target in Proxy.targets)

    def test_no_proxy_brings_the_wire_back(
        self, server: S3Server, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert make().read("x") == b"hello"
        assert _agents(server) == {"storage-backend"}

    def test_proxy_for_https_does_not_concern_http(
        self, server: S3Server, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
        assert make().read("x") == b"hello"
        assert _agents(server) == {"storage-backend"}


class _Source:
    """A container's source of credentials, which gives new ones at each request.

    Args:
        server: is told of each.
        seconds: how long they are said to be good.
        most: how many there are; then the last ones are given again.
    """

    def __init__(self, server: S3Server, seconds: float, most: int = 1_000_000) -> None:
        self.server = server
        self.seconds = seconds
        self.most = most
        self.given: list[str] = []
        self._lock = threading.Lock()

    def next(self) -> bytes:
        with self._lock:
            number = min(len(self.given) + 1, self.most)
            key, secret, token = f"AKID{number}", f"secret/{number}", f"token/{number}"
            self.server.credentials.secrets[key] = secret
            self.server.credentials.tokens[key] = token
            self.given.append(token)
        until = datetime.fromtimestamp(time.time() + self.seconds, UTC)
        return json.dumps(
            {
                "AccessKeyId": key,
                "SecretAccessKey": secret,
                "Token": token,
                "Expiration": until.strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        ).encode()

    def serve(self, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have boto3 find it."""
        source = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = source.next()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{_served(stack, Handler)}/credentials")


class TestCredentialsThatEnd:
    @pytest.fixture
    def storage(self, server: S3Server, stack: ExitStack) -> S3Storage:
        return stack.enter_context(
            S3Storage(
                "bucket",
                endpoint_url=server.url,
                region="us-east-1",
                multipart_threshold=5 * MIB,
                multipart_chunk_size=5 * MIB,
            )
        )

    def test_they_are_renewed_before_their_end(
        self, server: S3Server, storage: S3Storage, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = _Source(server, seconds=300)  # botocore renews what is good for less than ten minutes
        source.serve(stack, monkeypatch)
        for _ in range(3):
            assert storage.read("x") == b"hello"
            server.expired.update(source.given)
        storage.write_stream("large", io.BytesIO(bytes(LARGE)))
        assert same(server.stored("bucket", "large").body, bytes(LARGE))
        assert len({record.headers["x-amz-security-token"] for record in server.actions}) > 3

    @pytest.mark.parametrize("verb", ["read", "exists", "scan", "write", "write large", "abort"])
    def test_early_end_is_met_by_new_ones(
        self,
        server: S3Server,
        storage: S3Storage,
        stack: ExitStack,
        monkeypatch: pytest.MonkeyPatch,
        verb: str,
    ) -> None:
        source = _Source(server, seconds=3600)
        source.serve(stack, monkeypatch)
        assert storage.read("x") == b"hello"
        assert source.given == ["token/1"]
        server.expired.add("token/1")
        server.actions.clear()
        run: dict[str, Callable[[], object]] = {
            "read": lambda: storage.read("x"),
            "exists": lambda: storage.exists("x"),
            "scan": lambda: list(storage.scan()),
            "write": lambda: storage.write("x", b"hello"),
            "write large": lambda: storage.write_stream("large", io.BytesIO(bytes(LARGE))),
            "abort": storage.abort_incomplete_uploads,
        }
        run[verb]()
        assert source.given == ["token/1", "token/2"]
        assert set(server.rejected) == {"ExpiredToken"}
        assert {record.headers["x-amz-security-token"] for record in server.actions} == {"token/2"}

    @pytest.mark.parametrize("seconds", [300, 3600])
    def test_renewed_ones_that_do_not_work_are_told(
        self,
        server: S3Server,
        storage: S3Storage,
        stack: ExitStack,
        monkeypatch: pytest.MonkeyPatch,
        seconds: float,
    ) -> None:
        source = _Source(server, seconds, most=1)
        source.serve(stack, monkeypatch)
        server.expired.add("token/1")
        for run in (lambda: storage.read("x"), lambda: storage.exists("x"), storage.abort_incomplete_uploads):
            with pytest.raises(AuthenticationError, match="renew the credentials") as caught:
                run()
            assert "token/1" not in str(caught.value)

    def test_many_threads_renew_once(
        self, server: S3Server, storage: S3Storage, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = _Source(server, seconds=3600)
        source.serve(stack, monkeypatch)
        names = [f"k{number}" for number in range(64)]
        assert storage.write_many((name, name.encode()) for name in names) == 64
        server.expired.add("token/1")
        assert dict(storage.read_many(names)) == {name: name.encode() for name in names}
        assert source.given == ["token/1", "token/2"]


class TestCredentialsThatChange:
    """Of a file or a variable, that somebody else renews."""

    @staticmethod
    def known(server: S3Server, number: int) -> tuple[str, str, str]:
        key, secret, token = f"AKID{number}", f"secret/{number}", f"token/{number}"
        server.credentials.secrets[key] = secret
        server.credentials.tokens[key] = token
        return key, secret, token

    @pytest.fixture(params=["default profile", "another profile", "variables", "references"])
    def place(
        self,
        request: pytest.FixtureRequest,
        server: S3Server,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> tuple[Callable[[int], None], Callable[[], S3Storage]]:
        """Puts credentials of a number there; and makes a storage that uses what is there."""
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        path = tmp_path / "rotated"
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
        profile = {"default profile": "default", "another profile": "other"}.get(request.param)
        options: dict[str, Any] = {"profile": "other"} if profile == "other" else {}
        if request.param == "references":
            options = {
                "access_key": "env:A",
                "secret_key": "env:B",
                "session_token": f"file:{tmp_path / 'token'}",
            }

        def put(number: int) -> None:
            key, secret, token = self.known(server, number)
            if profile is not None:
                path.write_text(
                    f"[{profile}]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
                    f"aws_session_token = {token}\n"
                )
                return
            names = ("A", "B") if options else ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
            monkeypatch.setenv(names[0], key)
            monkeypatch.setenv(names[1], secret)
            monkeypatch.setenv("AWS_SESSION_TOKEN", token)
            (tmp_path / "token").write_text(token)

        def make() -> S3Storage:
            return S3Storage(
                "bucket",
                endpoint_url=server.url,
                region="us-east-1",
                multipart_threshold=5 * MIB,
                multipart_chunk_size=5 * MIB,
                **options,
            )

        return put, make

    def test_a_new_storage_has_the_new_ones(
        self, server: S3Server, place: tuple[Callable[[int], None], Callable[[], S3Storage]]
    ) -> None:
        put, make = place
        for number in (1, 2):
            put(number)
            with make() as storage:
                assert storage.read("x") == b"hello"
        assert [record.headers["x-amz-security-token"] for record in server.actions] == ["token/1", "token/2"]

    @pytest.mark.parametrize("end", ["expired", "replaced"])
    def test_a_running_one_looks_again(
        self, server: S3Server, place: tuple[Callable[[int], None], Callable[[], S3Storage]], end: str
    ) -> None:
        put, make = place
        put(1)
        with make() as storage:
            runs: list[Callable[[], object]] = [
                lambda: storage.read("x"),
                lambda: storage.exists("x"),
                lambda: storage.write_stream("large", io.BytesIO(bytes(6 * MIB))),
                storage.abort_incomplete_uploads,
                lambda: list(storage.read_many(["x"] * 20)),
            ]
            for number, run in enumerate(runs, 2):
                run()
                if end == "expired":
                    server.expired.add(f"token/{number - 1}")
                else:
                    del server.credentials.secrets[f"AKID{number - 1}"]
                put(number)
                server.actions.clear()
                run()
                assert {record.headers["x-amz-security-token"] for record in server.actions} == {
                    f"token/{number}"
                }
            # What is still the same is looked at once, and told.
            server.expired.add(f"token/{len(runs) + 1}")
            server.rejected.clear()
            with pytest.raises(AuthenticationError, match="renew the credentials"):
                storage.read("x")
            assert server.rejected == ["ExpiredToken"]

    def test_what_the_default_session_was_told_counts(
        self, server: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        key, secret, token = self.known(server, 7)
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        boto3.setup_default_session(
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            aws_session_token=token,
            region_name="us-east-1",
        )
        with S3Storage("bucket", endpoint_url=server.url) as storage:
            assert storage.read("x") == b"hello"
        assert server.actions[-1].headers["x-amz-security-token"] == token


class TestCredentialsThatCannotBeSent:
    @pytest.mark.parametrize("name", ["access_key", "secret_key", "session_token"])
    @pytest.mark.parametrize("how", ["itself", "variable", "file", "found by boto3"])
    def test_the_parameter_is_named(
        self, server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, how: str
    ) -> None:
        values = {"access_key": ACCESS_KEY, "secret_key": SECRET_KEY, "session_token": "token"}
        values[name] += "\nmore"
        options: dict[str, Any] = dict(values)
        if how == "variable":
            monkeypatch.setenv("V", values[name])
            options[name] = "env:V"
        elif how == "file":
            (tmp_path / "secret").write_text(f"{values[name]}\n")
            options[name] = f"file:{tmp_path / 'secret'}"
        elif how == "found by boto3":
            options = {}
            for parameter, value in values.items():
                variable = {"access_key": "AWS_ACCESS_KEY_ID", "secret_key": "AWS_SECRET_ACCESS_KEY"}
                monkeypatch.setenv(variable.get(parameter, "AWS_SESSION_TOKEN"), value)
        runs: list[Callable[[S3Storage], object]] = [
            lambda storage: storage.read("x"),
            lambda storage: storage.abort_incomplete_uploads(),
            lambda storage: storage.get_url("x"),
        ]
        for run in runs:
            with pytest.raises(ConfigurationError, match="line feed") as caught:
                run(S3Storage("bucket", endpoint_url=server.url, region="us-east-1", **options))
            assert caught.value.parameter == name
            assert "more" not in str(caught.value)


class TestURL:
    @staticmethod
    def fetch(url: str, method: str = "GET", content: bytes | None = None) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        headers = {} if content is None else {"Content-Type": ""}
        with opener.open(urllib.request.Request(url, content, headers, method=method), timeout=30) as answer:
            found: bytes = answer.read()
        return found

    def check(self, storage: S3Storage, name: str) -> None:
        storage.write(name, b"hello")
        url = storage.get_url(name, 60)
        query = parse_qs(urlsplit(url).query)
        assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
        assert query["X-Amz-Expires"] == ["60"]
        assert self.fetch(url) == b"hello"
        self.fetch(storage.get_url(name, method="PUT"), "PUT", b"by PUT")
        assert storage.read(name) == b"by PUT"

    @pytest.mark.parametrize("name", ["y", "d/ä b+c%20&=?#.txt"])
    def test_get_and_put_of_our_server(self, make: Make, name: str) -> None:
        self.check(make("a/b"), name)

    @pytest.mark.parametrize("name", ["y", "d/ä b+c%20&=?#.txt"])
    def test_get_and_put_of_moto(self, moto_bucket: BucketPlace, name: str) -> None:
        with storage_at(moto_bucket, "a/b") as storage:
            self.check(storage, name)

    @pytest.mark.parametrize("own", [True, False])
    def test_that_of_a_requester_who_pays_needs_no_header(
        self, server: S3Server, make: Make, own: bool
    ) -> None:
        storage = make("a", request_payer="requester")
        if not own:
            client = boto3_client(server)
            storage = S3Storage("bucket", "a", client=client, request_payer="requester")
        self.check(storage, "y z")
        query = parse_qs(urlsplit(storage.get_url("y z")).query)
        assert query["x-amz-request-payer"] == ["requester"]
        assert query["X-Amz-SignedHeaders"] == ["host"]
        assert {
            record.query.get("x-amz-request-payer")
            for record in server.actions
            if not record.headers.get("authorization")
        } == {"requester"}
        if not own:
            # What the caller does with this client is as before.
            url = client.generate_presigned_url(
                "get_object", {"Bucket": "bucket", "Key": "x", "RequestPayer": "requester"}
            )
            assert "x-amz-request-payer" in parse_qs(urlsplit(url).query)["X-Amz-SignedHeaders"][0]

    def test_one_is_not_the_other(self, make: Make) -> None:
        with pytest.raises(urllib.error.HTTPError, match="403"):
            self.fetch(make().get_url("x"), "PUT", b"no")

    def test_it_ends(self, server: S3Server, make: Make) -> None:
        url = make().get_url("x", 60)
        server.clock = lambda: time.time() + 61
        with pytest.raises(urllib.error.HTTPError, match="403"):
            self.fetch(url)

    @pytest.mark.parametrize("seconds", [0, -1, 7 * 24 * 3600 + 1])
    def test_time_out_of_bounds_is_refused(self, make: Make, seconds: int) -> None:
        with pytest.raises(ConfigurationError, match="expires_in"):
            make().get_url("x", seconds)

    @pytest.mark.parametrize("seconds", [1, 7 * 24 * 3600])
    def test_bounds_themselves_are_good(self, make: Make, seconds: int) -> None:
        assert self.fetch(make().get_url("x", seconds)) == b"hello"

    def test_unknown_method_is_refused(self, make: Make) -> None:
        with pytest.raises(ConfigurationError, match="method"):
            make().get_url("x", method="POST")  # type: ignore[arg-type]  # the point of the test

    def test_missing_object_has_one_too(self, server: S3Server, make: Make) -> None:
        assert make().get_url("absent")
        assert server.connections == 0


class TestVersions:
    def test_old_version_is_read(self, moto_bucket: BucketPlace) -> None:
        with storage_at(moto_bucket) as storage:
            storage.client.put_bucket_versioning(
                Bucket=moto_bucket.bucket, VersioningConfiguration={"Status": "Enabled"}
            )
            storage.write("x", b"old bytes")
            old = storage.client.head_object(Bucket=moto_bucket.bucket, Key="x")["VersionId"]
            storage.write("x", b"new")
            assert storage.read("x") == b"new"
            assert storage.read("x", version_id=old) == b"old bytes"
            assert storage.read_range("x", 4, 7, version_id=old) == b"byt"
            assert storage.stat("x", version_id=old).size == 9
            assert storage.stat("x").size == 3
            with storage.open("x", version_id=old) as reader:
                assert reader.read(3) == b"old"
                reader.seek(-5, io.SEEK_END)
                assert reader.read() == b"bytes"
            storage.delete("x")
            with pytest.raises(NotFoundError):
                storage.read("x")
            assert storage.read("x", version_id=old) == b"old bytes"


class TestCopies:
    @pytest.fixture
    def limits(self, server: S3Server) -> Limits:
        server.settings.copy_limit = 6 * MIB
        return server.settings

    def test_from_another_bucket_and_prefix(self, server: S3Server, make: Make) -> None:
        server.create_bucket("other")
        make("from", bucket="other").write_stream("ä b/c", io.BytesIO(b"hello"))
        target = make("to")
        assert target.copy_from(make("from", bucket="other"), "ä b/c")
        assert target.copy_from(make("from", bucket="other"), "ä b/c", "y")
        assert server.objects("bucket") == {"to/y": b"hello", "to/ä b/c": b"hello", "x": b"hello"}
        with pytest.raises(NotFoundError):
            target.copy_from(make("from", bucket="other"), "absent")
        assert "GetObject" not in {record.operation for record in server.actions}

    @pytest.mark.parametrize("verb", ["copy", "move", "copy_from"])
    @pytest.mark.parametrize("own", [True, False])
    def test_in_parts_brings_along_all_that_one_request_would(
        self, server: S3Server, make: Make, limits: Limits, verb: str, own: bool
    ) -> None:
        headers = {
            "content-type": "text/plain",
            "cache-control": "max-age=60",
            "content-disposition": 'attachment; filename="a.txt"',
            "content-encoding": "gzip",
            "content-language": "de",
            "expires": "Wed, 21 Oct 2026 07:28:00 GMT",
            "x-amz-meta-mtime": "1.5",
            "x-amz-tagging": "project=a%20b&owner=%C3%A4",
        }
        server.put("bucket", "large", bytes(7 * MIB), {**headers, "x-amz-storage-class": "STANDARD_IA"})
        options: dict[str, Any] = {"multipart_threshold": 5 * MIB, "multipart_chunk_size": 5 * MIB}
        if own:
            storage = make(**options)
        else:
            client = make().client
            storage = S3Storage("bucket", client=client, **options)
        if verb == "copy_from":
            assert storage.copy_from(storage, "large", "new")
        else:
            assert getattr(storage, verb)("large", "new")
        stored = server.stored("bucket", "new")
        assert len(stored.body) == 7 * MIB
        assert stored.etag.endswith("-2")
        found = dict(stored.headers)
        assert found.pop("x-amz-storage-class") == "STANDARD_IA"
        assert dict(parse_qsl(found.pop("x-amz-tagging"))) == {"project": "a b", "owner": "ä"}
        del headers["x-amz-tagging"]
        assert found == headers

    def test_in_parts_says_what_it_cannot_bring_along(
        self, server: S3Server, make: Make, limits: Limits, caplog: pytest.LogCaptureFixture
    ) -> None:
        server.put("bucket", "large", bytes(7 * MIB), {"expires": "0", "cache-control": "no-cache"})
        storage = make(multipart_threshold=5 * MIB, multipart_chunk_size=5 * MIB, storage_class="GLACIER")
        assert storage.copy("large", "new")
        assert "no Expires header: '0'" in caplog.text
        headers = server.stored("bucket", "new").headers
        assert headers["cache-control"] == "no-cache"
        assert headers["x-amz-storage-class"] == "GLACIER"  # the caller's comes first

    def test_between_two_services_is_refused(self, server: S3Server, make: Make) -> None:
        with S3Server() as other:
            other.create_bucket("bucket")
            other.put("bucket", "y", b"")
            with pytest.raises(ConfigurationError, match="different services") as caught:
                make().copy_from(make(at=other), "y")
            assert caught.value.parameter == "source"
            assert other.actions == server.actions == []

    def test_between_regions_of_amazon_is_one_service(self, make: Make) -> None:
        """Refused or not is decided without a request; what follows here is not sent."""
        options: dict[str, Any] = {"access_key": "a", "secret_key": "b"}
        here = S3Storage("bucket", region="eu-west-1", **options)
        there = S3Storage("bucket", region="us-east-1", **options)
        seen: list[str] = []

        def answer(request: Any, **_: Any) -> Any:
            from botocore.awsrequest import AWSResponse

            class Nothing(io.BytesIO):
                def stream(self, *_: object) -> Iterator[bytes]:
                    yield b"<CopyObjectResult><ETag>e</ETag></CopyObjectResult>"

            seen.append(request.url)
            return AWSResponse(request.url, 200, {}, Nothing())

        here.client.meta.events.register("before-send.s3.CopyObject", answer)
        assert here.copy_from(there, "x", "y")
        assert [urlsplit(url).hostname for url in seen] == ["bucket.s3.eu-west-1.amazonaws.com"]

    @pytest.mark.parametrize("verb", ["copy", "move", "copy_from"])
    @pytest.mark.usefixtures("limits")
    def test_beyond_the_limit_go_in_parts_and_keep_what_belongs_to_them(
        self, server: S3Server, make: Make, verb: str
    ) -> None:
        content = os.urandom(LARGE)
        kept = {"content-type": "image/x-test", "x-amz-meta-colour": "blue", "x-amz-meta-mtime": "1.5"}
        server.put("bucket", "large", content, kept)
        storage = make(multipart_chunk_size=5 * MIB, multipart_threshold=5 * MIB)
        if verb == "copy_from":
            make("there", multipart_chunk_size=5 * MIB, multipart_threshold=5 * MIB).copy_from(
                storage, "large", "new"
            )
        else:
            getattr(storage, verb)("large", "new")
        found = server.stored("bucket", "there/new" if verb == "copy_from" else "new")
        assert same(found.body, content)
        assert {name: found.headers.get(name) for name in kept} == kept
        assert ("large" in server.objects("bucket")) is (verb != "move")
        operations = [record.operation for record in server.actions]
        assert operations.count("UploadPartCopy") == 3
        assert {"GetObject", "PutObject", "UploadPart"}.isdisjoint(operations)
        assert server.uploads("bucket") == {}

    @pytest.mark.usefixtures("limits")
    def test_source_that_changes_meanwhile_is_not_mixed(self, server: S3Server, make: Make) -> None:
        server.put("bucket", "large", bytes(LARGE))
        storage = make(multipart_chunk_size=5 * MIB, multipart_threshold=5 * MIB, max_concurrency=1)
        server.clock = _changing(server, after="UploadPartCopy")
        with pytest.raises(OSError, match="PreconditionFailed"):
            storage.copy("large", "new")
        assert "new" not in server.objects("bucket")
        assert server.uploads("bucket") == {}


def _changing(server: S3Server, after: str) -> Callable[[], float]:
    """A clock that overwrites "large" once an operation was done."""

    def clock() -> float:
        if any(record.operation == after and record.status == 200 for record in server.actions):
            server.clock = time.time
            server.put("bucket", "large", b"1" * LARGE)
        return time.time()

    return clock


class TestOldUploads:
    def test_those_beneath_the_prefix_and_old_enough_are_aborted(self, server: S3Server, make: Make) -> None:
        storage = make("mod")
        create = storage.client.create_multipart_upload
        now = time.time()
        days = {"mod/old": 3, "mod/b/old": 2, "mod/new": 0.5, "models/old": 3, "mod": 3}
        for key, age in days.items():
            create(Bucket="bucket", Key=key)
            (upload,) = (each for each in server.uploads("bucket").values() if each.key == key)
            upload.initiated = now - age * 86_400
        server.settings.page_size = 1
        assert storage.abort_incomplete_uploads(timedelta(days=4)) == 0
        assert storage.abort_incomplete_uploads() == 2
        assert {each.key for each in server.uploads("bucket").values()} == {"mod/new", "models/old", "mod"}
        assert storage.abort_incomplete_uploads(timedelta(0)) == 1
        assert make().abort_incomplete_uploads(timedelta(0)) == 2
        assert server.uploads("bucket") == {}

    def test_age_is_by_the_given_clock(self, server: S3Server, make: Make) -> None:
        make().client.create_multipart_upload(Bucket="bucket", Key="left")
        assert make().abort_incomplete_uploads() == 0
        assert make(clock=lambda: time.time() + 2 * 86_400).abort_incomplete_uploads() == 1


def test_signature_and_help_show_each_parameter() -> None:
    parameters = inspect.signature(S3Storage).parameters
    assert [*parameters][:2] == ["bucket", "prefix"]
    assert {"region", "secret_key", "multipart_threshold", "sleep"} <= parameters.keys()
    documented = inspect.cleandoc(S3Storage.__doc__ or "")
    for name, parameter in parameters.items():
        assert parameter.annotation not in {parameter.empty, "Any"} or name == "client"
        assert re.search(rf"^    {name}: ", documented, re.MULTILINE), name
