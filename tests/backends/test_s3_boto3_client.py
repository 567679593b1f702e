"""Users of moto, of a client of their own, of a Stubber and of mocks: none of them reaches a network by accident."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import boto3
import pytest
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.loaders import JSONFileLoader
from botocore.response import StreamingBody
from botocore.stub import Stubber

from storage_backend import (
    AccessDeniedError,
    ConfigurationError,
    NotFoundError,
    PreconditionFailedError,
    S3Storage,
    StorageError,
)
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

pytest.importorskip("moto")
from moto import mock_aws

ALIEN = ("AKIDOFTHECLIENT", "another/secret+of/the/client")


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


def _blocked(monkeypatch: pytest.MonkeyPatch, allowed: Callable[[Any], bool]) -> list[Any]:
    """Have connections to other addresses fail; those that were tried."""
    tried: list[Any] = []
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family == socket.AF_UNIX or allowed(address):
            real(self, address)
            return
        tried.append(address)
        raise AssertionError(f"a connection to {address!r}")

    def resolve(host: Any, *_: Any, **__: Any) -> Any:
        tried.append(host)
        raise AssertionError(f"a look-up of {host!r}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket.socket, "connect_ex", connect)
    real_resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *args, **keywords: (
            real_resolve(host, *args, **keywords)
            if host == "127.0.0.1" and allowed((host, 0))
            else resolve(host)
        ),
    )
    return tried


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Only this machine can be reached."""
    tried = _blocked(monkeypatch, lambda address: address[0] == "127.0.0.1")
    yield
    assert tried == []


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing can be reached."""
    tried = _blocked(monkeypatch, lambda _: False)
    yield
    assert tried == []


@pytest.fixture
def server(loopback: None) -> Iterator[S3Server]:
    with S3Server() as server:
        server.create_bucket("bucket")
        server.put("bucket", "x.txt", b"hello")
        yield server


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


Make = Callable[..., S3Storage]


@pytest.fixture
def make(server: S3Server, stack: ExitStack) -> Make:
    def make(**options: Any) -> S3Storage:
        return stack.enter_context(
            S3Storage(
                "bucket",
                endpoint_url=server.url,
                region="us-east-1",
                access_key=ACCESS_KEY,
                secret_key=SECRET_KEY,
                **options,
            )
        )

    return make


def _client(
    server: S3Server, keys: tuple[str, str] = (ACCESS_KEY, SECRET_KEY), region: str = "us-east-1"
) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.url,
        region_name=region,
        aws_access_key_id=keys[0],
        aws_secret_access_key=keys[1],
        config=Config(s3={"addressing_style": "path"}, proxies={}),
    )


def _agents(server: S3Server) -> set[str]:
    """Who made the requests so far, which are then forgotten."""
    found = {record.headers["user-agent"].partition("/")[0] for record in server.actions}
    server.actions.clear()
    return found


WIRE, BOTO3 = {"storage-backend"}, {"Boto3"}


def _use(storage: S3Storage) -> None:
    """The seven methods and the most common others, with their results checked."""
    assert storage.write("d/new.txt", b"new")
    assert storage.exists("d/new.txt")
    assert not storage.exists("d/absent")
    assert storage.read("d/new.txt") == b"new"
    assert storage.size("d/new.txt") == 3
    assert storage.list("d/*") == ["d/new.txt"]
    assert storage.get_path("d/new.txt") == "s3://bucket/d/new.txt"
    assert storage.write_stream("d/b", io.BytesIO(b"streamed"))
    with storage.open("d/b") as reader:
        reader.seek(2)
        assert reader.read(3) == b"rea"
    with storage.open("d/c", "wb") as writer:
        writer.write(b"written")
    assert storage.read_range("d/c", 1, 3) == b"ri"
    assert [info.identifier for info in storage.scan("d/")] == ["d/b", "d/c", "d/new.txt"]
    assert storage.stat("d/c").size == 7
    assert storage.create("d/c", b"") is False
    with pytest.raises(PreconditionFailedError):
        storage.replace("d/c", b"", "0" * 32)
    assert storage.copy("d/c", "d/e")
    assert dict(storage.read_many(["d/b", "d/e"])) == {"d/b": b"streamed", "d/e": b"written"}
    assert storage.write_many([("d/f", b"1"), ("d/g", b"2")]) == 2
    assert storage.checksum("d/f", "md5") == "c4ca4238a0b923820dcc509a6f75849b"
    assert storage.delete("d/new.txt")
    with pytest.raises(NotFoundError):
        storage.read("d/new.txt")
    with pytest.raises(NotFoundError):
        storage.delete("d/new.txt")
    assert storage.delete_many(["d/b", "d/c", "d/e", "d/f", "d/g"]) == 5
    assert storage.list("d/*") == []


class TestMoto:
    """In-process moto, which answers in place of the network."""

    pytestmark = pytest.mark.usefixtures("offline")

    @staticmethod
    def bucket() -> None:
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")

    @mock_aws
    def test_decorator(self) -> None:
        self.bucket()
        with S3Storage("bucket", region="us-east-1") as storage:
            _use(storage)

    def test_context_manager(self) -> None:
        with mock_aws():
            self.bucket()
            with S3Storage("bucket") as storage:
                _use(storage)

    def test_storage_made_before(self) -> None:
        storage = S3Storage("bucket", region="us-east-1")
        with mock_aws(), storage:
            self.bucket()
            _use(storage)

    def test_client_made_before(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        storage = S3Storage("bucket", region="us-east-1")
        assert isinstance(storage.client, BaseClient)
        with mock_aws(), storage:
            self.bucket()
            _use(storage)

    def test_client_of_ones_own_made_before(self) -> None:
        client = boto3.client(
            "s3", region_name="us-east-1", aws_access_key_id="testing", aws_secret_access_key="testing"
        )
        with mock_aws():
            self.bucket()
            _use(S3Storage("bucket", client=client))

    def test_keys_and_region_given(self) -> None:
        with mock_aws():
            boto3.client("s3", region_name="eu-west-1").create_bucket(
                Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
            )
            with S3Storage("bucket", region="eu-west-1", access_key="a", secret_key="b") as storage:
                _use(storage)

    def test_bucket_is_created(self) -> None:
        with mock_aws(), S3Storage("bucket", region="eu-west-1", create_bucket=True) as storage:
            _use(storage)
            where = storage.client.get_bucket_location(Bucket="bucket")
            assert where["LocationConstraint"] == "eu-west-1"

    def test_large_upload(self) -> None:
        with mock_aws():
            self.bucket()
            with S3Storage("bucket", region="us-east-1", multipart_threshold=5 << 20) as storage:
                storage.write_stream("x", io.BytesIO(bytes(11 << 20)))
                assert storage.size("x") == 11 << 20

    def test_each_mock_begins_empty(self) -> None:
        storage = S3Storage("bucket", region="us-east-1")
        for _ in range(2):
            with mock_aws():
                self.bucket()
                assert storage.list() == []
                storage.write("x", b"")

    def test_versions(self) -> None:
        with mock_aws():
            self.bucket()
            with S3Storage("bucket", region="us-east-1") as storage:
                storage.client.put_bucket_versioning(
                    Bucket="bucket", VersioningConfiguration={"Status": "Enabled"}
                )
                storage.write("x", b"old bytes")
                storage.write("x", b"new")
                listed = storage.client.list_object_versions(Bucket="bucket")["Versions"]
                old = next(each["VersionId"] for each in listed if not each["IsLatest"])
                assert storage.read("x") == b"new"
                assert storage.read("x", version_id=old) == b"old bytes"
                assert storage.read_range("x", 4, version_id=old) == b"bytes"
                assert storage.stat("x", version_id=old).size == 9
                with storage.open("x", version_id=old) as reader:
                    reader.seek(4)
                    assert reader.read() == b"bytes"


def _script(text: str, directory: Path) -> None:
    """Run *text* in an interpreter of its own, where no connection can be made."""
    head = """
        import socket, sys

        def refuse(*_):
            raise AssertionError("a connection")

        socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(text)],
        env={
            "HOME": str(directory),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_client_made_before_moto_was_imported_is_patched(tmp_path: Path) -> None:
    _script(
        """
        from storage_backend.backends.s3 import S3Storage
        storage = S3Storage("bucket")
        client = storage.client
        storage.get_url("x")
        assert "moto" not in sys.modules
        from moto import mock_aws
        from moto.core import patch_client
        with mock_aws():
            patch_client(client)
            client.create_bucket(Bucket="bucket")
            storage.write("x", b"hello")
            assert storage.read("x") == b"hello"
            assert storage.client is client
        """,
        tmp_path,
    )


def test_patched_client_that_was_used_already(tmp_path: Path) -> None:
    _script(
        """
        from storage_backend.backends.s3 import S3Storage
        storage = S3Storage("bucket", sleep=lambda _: None)
        try:
            storage.read("x")
        except AssertionError:
            pass
        from moto import mock_aws
        from moto.core import patch_client
        with mock_aws():
            patch_client(storage.client)
            storage.client.create_bucket(Bucket="bucket")
            storage.write("x", b"hello")
            assert storage.read("x") == b"hello"
        """,
        tmp_path,
    )


def test_missing_boto3_is_named(tmp_path: Path) -> None:
    _script(
        """
        class Blocker:
            def find_spec(self, name, *_):
                if name.partition(".")[0] in {"boto3", "botocore"}:
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Blocker())
        from storage_backend import MissingClientError
        from storage_backend.backends.s3 import S3Storage
        storage = S3Storage("bucket", "prefix")
        for verb in (storage.read, storage.exists, storage.stat, storage.checksum, storage.list, storage.delete):
            try:
                verb("x")
            except MissingClientError as error:
                assert str(error).endswith("pip install boto3"), error
                assert "s3://bucket/prefix" in str(error), error
            else:
                raise AssertionError("no error")
        """,
        tmp_path,
    )


class TestOwnClient:
    def test_plain_client_makes_all_requests(self, server: S3Server) -> None:
        _use(S3Storage("bucket", client=_client(server)))
        assert _agents(server) == BOTO3

    def test_requests_are_signed_by_its_keys_and_region(self, server: S3Server) -> None:
        server.create_bucket("far", region="eu-central-1")
        server.credentials.secrets[ALIEN[0]] = ALIEN[1]
        storage = S3Storage("far", client=_client(server, ALIEN, "eu-central-1"))
        storage.write("x", b"hello")
        assert storage.read("x") == b"hello"
        assert list(storage.scan())
        for record in server.actions:
            assert f"Credential={ALIEN[0]}/" in record.headers["authorization"]
            assert "/eu-central-1/s3/" in record.headers["authorization"]
        assert server.rejected == []

    def test_clients_of_ours_sign_by_theirs_on_both_ways(
        self, server: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.create_bucket("far", region="eu-central-1")
        server.credentials.secrets[ALIEN[0]] = ALIEN[1]
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", ALIEN[0])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ALIEN[1])
        with S3Storage("far", endpoint_url=server.url, region="eu-central-1") as storage:
            storage.write("x", b"hello")
            storage.client.head_object(Bucket="far", Key="x")
        assert server.rejected == []
        for record in server.actions:
            assert f"Credential={ALIEN[0]}/" in record.headers["authorization"]
            assert "/eu-central-1/s3/" in record.headers["authorization"]
        assert _agents(server) == WIRE | BOTO3

    def test_it_is_neither_closed_nor_replaced(self, server: S3Server) -> None:
        client = _client(server)
        storage = S3Storage("bucket", client=client)
        assert storage.client is client
        with storage:
            storage.read("x.txt")
        assert client.get_object(Bucket="bucket", Key="x.txt")["Body"].read() == b"hello"
        assert storage.read("x.txt") == b"hello"

    def test_handlers_of_its_owner_are_left_alone(self, server: S3Server) -> None:
        client = _client(server)
        before = dict(client.meta.events._emitter._unique_id_handlers)
        seen: list[str] = []
        client.meta.events.register("before-send.s3", lambda request, **_: seen.append(request.method))
        _use(S3Storage("bucket", client=client))
        assert {"GET", "HEAD", "PUT", "DELETE", "POST"} <= set(seen)
        assert dict(client.meta.events._emitter._unique_id_handlers) == before

    @pytest.mark.parametrize("name", ["region", "endpoint_url", "access_key", "profile", "anonymous"])
    def test_it_contradicts_other_ways_to_say_so(self, server: S3Server, name: str) -> None:
        value: Any = {"endpoint_url": server.url, "anonymous": True}.get(name, "x")
        extra = {"secret_key": "x"} if name == "access_key" else {}
        with pytest.raises(ConfigurationError, match="client"):
            S3Storage("bucket", client=_client(server), **{name: value, **extra})


class TestAttributeOfBoto3:
    def test_it_is_called_when_nothing_else_is_said(
        self, monkeypatch: pytest.MonkeyPatch, offline: None
    ) -> None:
        fake = MagicMock()
        fake.get_object.return_value = {"Body": io.BytesIO(b"hello")}
        called: list[Any] = []

        def client(*arguments: Any, **keywords: Any) -> Any:
            called.append((arguments, keywords))
            return fake

        monkeypatch.setattr(boto3, "client", client)
        storage = S3Storage("bucket", region="eu-west-1", endpoint_url="https://s3.example.org")
        assert called == []
        assert storage.read("x") == b"hello"
        assert storage.client is fake
        ((arguments, keywords),) = called
        assert arguments == ("s3",)
        assert keywords["region_name"] == "eu-west-1"
        assert keywords["endpoint_url"] == "https://s3.example.org"
        assert not {name for name in keywords if "aws" in name}
        assert storage.write("d.txt", b"bytes")
        fake.put_object.assert_called_once_with(
            Bucket="bucket", Key="d.txt", Body=b"bytes", ContentType="text/plain"
        )

    def test_client_of_a_users_factory_is_used_as_it_is(
        self, server: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mine = _client(server)
        monkeypatch.setattr(boto3, "client", lambda *_, **__: mine)
        with S3Storage("bucket") as storage:
            _use(storage)
            assert storage.client is mine
        assert server.rejected == []


class TestDescriptions:
    """Botocore's descriptions of the service, megabytes of JSON."""

    @pytest.fixture
    def loaded(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        loaded: list[str] = []
        load = JSONFileLoader.load_file

        def note(self: JSONFileLoader, path: str) -> Any:
            loaded.append(path)
            return load(self, path)

        monkeypatch.setattr(JSONFileLoader, "load_file", note)
        return loaded

    def test_they_are_parsed_once(self, make: Make, loaded: list[str]) -> None:
        paths = list(make().client._loader.search_paths)
        loaded.clear()
        again = make()
        assert again.read("x.txt") == b"hello"
        assert again.client._loader.search_paths == paths
        assert loaded == []

    def test_those_of_the_user_are_looked_for(
        self, make: Make, loaded: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "models").mkdir()
        monkeypatch.setenv("AWS_DATA_PATH", f"~/models{os.pathsep}/nowhere")
        assert make().read("x.txt") == b"hello"
        assert str(tmp_path / "models" / "endpoints") in loaded


class TestStubber:
    def test_client_with_a_stubber_meets_what_it_expects(self, offline: None) -> None:
        client = boto3.client("s3", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
        storage = S3Storage("bucket", "pre", client=client)
        with Stubber(client) as stubber:
            stubber.add_response(
                "put_object",
                {"ETag": '"e"'},
                {"Bucket": "bucket", "Key": "pre/a.txt", "Body": b"hello", "ContentType": "text/plain"},
            )
            storage.write("a.txt", b"hello")
            stubber.add_response("put_object", {}, {"Bucket": "bucket", "Key": "pre/a", "Body": b"hello"})
            storage.write("a", b"hello")
            body = StreamingBody(io.BytesIO(b"hello"), 5)
            stubber.add_response(
                "get_object", {"Body": body, "ContentLength": 5}, {"Bucket": "bucket", "Key": "pre/a"}
            )
            assert storage.read("a") == b"hello"
            stubber.add_response("head_object", {"ContentLength": 5}, {"Bucket": "bucket", "Key": "pre/a"})
            assert storage.size("a") == 5
            stubber.add_response(
                "list_objects_v2",
                {"Contents": [{"Key": "pre/a", "Size": 5}], "IsTruncated": False},
                {"Bucket": "bucket", "Prefix": "pre/"},
            )
            assert storage.list() == ["a"]
            stubber.add_response("head_object", {}, {"Bucket": "bucket", "Key": "pre/a"})
            stubber.add_response("delete_object", {}, {"Bucket": "bucket", "Key": "pre/a"})
            assert storage.delete("a")
            stubber.assert_no_pending_responses()

    @pytest.mark.parametrize("code", ["404", "NoSuchKey"])
    def test_stubbed_refusal_is_not_looked_into(self, offline: None, code: str) -> None:
        client = boto3.client("s3", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
        storage = S3Storage("bucket", client=client)
        with Stubber(client) as stubber:
            stubber.add_client_error("head_object", code, http_status_code=404)
            assert not storage.exists("a")
            stubber.add_client_error("get_object", code, http_status_code=404)
            with pytest.raises(NotFoundError):
                storage.read("a")
            stubber.add_client_error("put_object", "AccessDenied", http_status_code=403)
            with pytest.raises(AccessDeniedError):
                storage.write("a", b"")
            stubber.assert_no_pending_responses()

    def test_stubber_takes_over_when_activated_and_gives_back(self, server: S3Server, make: Make) -> None:
        storage = make()
        assert storage.read("x.txt") == b"hello"
        assert _agents(server) == WIRE
        stubber = Stubber(storage.client)
        stubber.add_response(
            "put_object",
            {},
            {"Bucket": "bucket", "Key": "y.txt", "Body": b"new", "ContentType": "text/plain"},
        )
        stubber.add_response(
            "get_object",
            {"Body": StreamingBody(io.BytesIO(b"stubbed"), 7)},
            {"Bucket": "bucket", "Key": "x.txt"},
        )
        with stubber:
            storage.write("y.txt", b"new")
            assert storage.read("x.txt") == b"stubbed"
        assert server.actions == []
        assert storage.read("x.txt") == b"hello"
        assert _agents(server) == WIRE
        with stubber, pytest.raises(StorageError, match=r"no responses left|Unexpected API Call"):
            storage.read("x.txt")
        assert server.actions == []


class TestHandler:
    @pytest.mark.parametrize("event", ["before-sign.s3.GetObject", "before-sign.s3"])
    def test_header_of_a_users_handler_is_sent(self, server: S3Server, make: Make, event: str) -> None:
        storage = make()
        storage.read("x.txt")
        assert _agents(server) == WIRE

        def add(request: Any, **_: Any) -> None:
            request.headers["x-amz-meta-trace"] = "7"

        storage.client.meta.events.register(event, add)
        assert storage.read("x.txt") == b"hello"
        assert server.actions[-1].headers["x-amz-meta-trace"] == "7"
        assert _agents(server) == BOTO3
        storage.client.meta.events.unregister(event, add)
        assert storage.read("x.txt") == b"hello"
        assert _agents(server) == WIRE

    @pytest.mark.parametrize(
        ("operation", "run"),
        [
            ("HeadObject", lambda storage: storage.size("x.txt")),
            ("DeleteObject", lambda storage: storage.delete("x.txt")),
            ("DeleteObjects", lambda storage: storage.delete_many(["x.txt"])),
            ("CopyObject", lambda storage: storage.copy("x.txt", "y")),
            ("ListObjectsV2", lambda storage: storage.list()),
        ],
    )
    def test_handler_of_any_operation_is_called(
        self, make: Make, operation: str, run: Callable[[S3Storage], object]
    ) -> None:
        storage = make()
        seen: list[str] = []
        storage.client.meta.events.register(
            f"before-send.s3.{operation}", lambda request, **_: seen.append(request.method)
        )
        run(storage)
        assert len(seen) == 1

    def test_parameters_of_a_users_handler_are_honoured(self, server: S3Server, make: Make) -> None:
        storage = make()

        def tag(params: dict[str, Any], **_: Any) -> None:
            params["CacheControl"] = "no-store"

        storage.client.meta.events.register("provide-client-params.s3.PutObject", tag)
        storage.write("y", b"")
        assert server.stored("bucket", "y").headers["cache-control"] == "no-store"


def _refusal(operation: str, code: str = "404", status: int = 404) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}, operation
    )


class TestMock:
    """A MagicMock gives a MagicMock for whatever it was not told."""

    pytestmark = pytest.mark.usefixtures("offline")

    @pytest.fixture
    def client(self) -> MagicMock:
        return MagicMock()

    @pytest.fixture
    def storage(self, client: MagicMock) -> Iterator[S3Storage]:
        with S3Storage(
            "bucket", "pre", client=client
        ) as storage:  # the mock keeps errors, and these the storage
            yield storage

    @staticmethod
    def body(client: MagicMock, content: bytes) -> None:
        client.get_object.side_effect = lambda **_: {"Body": io.BytesIO(content)}

    def test_read(self, client: MagicMock, storage: S3Storage) -> None:
        client.get_object.return_value = {"Body": io.BytesIO(b"hello")}
        assert storage.read("x") == b"hello"
        client.get_object.assert_called_once_with(Bucket="bucket", Key="pre/x")

    def test_write(self, client: MagicMock, storage: S3Storage) -> None:
        assert storage.write("x", b"hello")
        client.put_object.assert_called_once_with(Bucket="bucket", Key="pre/x", Body=b"hello")

    def test_exists(self, client: MagicMock, storage: S3Storage) -> None:
        assert storage.exists("x")
        client.head_object.assert_called_once_with(Bucket="bucket", Key="pre/x")
        client.head_object.side_effect = _refusal("HeadObject")
        assert not storage.exists("x")
        client.head_object.side_effect = _refusal("HeadObject", "NoSuchKey")
        assert not storage.exists("x")
        client.get_object.assert_not_called()

    def test_exists_refused(self, client: MagicMock, storage: S3Storage) -> None:
        client.head_object.side_effect = _refusal("HeadObject", "403", 403)
        with pytest.raises(AccessDeniedError):
            storage.exists("x")

    def test_refusal_without_metadata(self, client: MagicMock, storage: S3Storage) -> None:
        client.head_object.side_effect = ClientError({"Error": {"Code": "404"}}, "HeadObject")
        assert not storage.exists("x")
        client.get_object.side_effect = ClientError({"Error": {"Code": "NoSuchKey"}}, "GetObject")
        with pytest.raises(NotFoundError):
            storage.read("x")
        client.get_object.side_effect = ClientError({"Error": {"Code": "AccessDenied"}}, "GetObject")
        with pytest.raises(AccessDeniedError):
            storage.read("x")

    def test_delete(self, client: MagicMock, storage: S3Storage) -> None:
        assert storage.delete("x")
        client.delete_object.assert_called_once_with(Bucket="bucket", Key="pre/x")
        client.head_object.side_effect = _refusal("HeadObject")
        with pytest.raises(NotFoundError):
            storage.delete("x")

    def test_size(self, client: MagicMock, storage: S3Storage) -> None:
        client.head_object.return_value = {"ContentLength": 5}
        assert storage.size("x") == 5

    def test_list(self, client: MagicMock, storage: S3Storage) -> None:
        client.list_objects_v2.return_value = {
            "Contents": [{"Key": "pre/b", "Size": 1}, {"Key": "pre/a", "Size": 2}]
        }
        assert storage.list() == ["a", "b"]
        assert storage.list("a*") == ["a"]
        client.list_objects_v2.return_value = {}
        assert storage.list() == []

    def test_list_without_sizes(self, client: MagicMock, storage: S3Storage) -> None:
        client.list_objects_v2.return_value = {"Contents": [{"Key": "pre/a"}]}
        assert storage.list() == ["a"]

    def test_listing_of_an_untold_mock_ends(self, client: MagicMock, storage: S3Storage) -> None:
        assert list(storage.scan()) == []
        assert storage.list("*") == []
        assert storage.abort_incomplete_uploads() == 0

    def test_pages(self, client: MagicMock, storage: S3Storage) -> None:
        client.list_objects_v2.side_effect = [
            {"Contents": [{"Key": "pre/a", "Size": 1}], "IsTruncated": True, "NextContinuationToken": "t"},
            {"Contents": [{"Key": "pre/b", "Size": 1}], "IsTruncated": False},
        ]
        assert [info.identifier for info in storage.scan()] == ["a", "b"]
        assert client.list_objects_v2.call_args.kwargs["ContinuationToken"] == "t"

    def test_get_path(self, storage: S3Storage, client: MagicMock) -> None:
        assert storage.get_path("x") == "s3://bucket/pre/x"
        assert client.mock_calls == []

    def test_open(self, client: MagicMock, storage: S3Storage) -> None:
        self.body(client, b"hello")
        with storage.open("x") as reader:
            assert reader.read() == b"hello"
            reader.seek(1)
            assert reader.read(2) == b"el"
        with storage.open("x") as reader:
            assert list(reader) == [b"hello"]

    def test_open_to_write(self, client: MagicMock, storage: S3Storage) -> None:
        with storage.open("x", "wb") as writer:
            writer.write(b"hel")
            writer.write(b"lo")
        assert bytes(client.put_object.call_args.kwargs["Body"]) == b"hello"

    def test_write_stream(self, client: MagicMock, storage: S3Storage) -> None:
        assert storage.write_stream("x", io.BytesIO(b"hello"))
        assert client.put_object.call_args.kwargs == {"Bucket": "bucket", "Key": "pre/x", "Body": b"hello"}

    def test_others(self, client: MagicMock, storage: S3Storage, tmp_path: Path) -> None:
        self.body(client, b"hello")
        assert storage.download("x", tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == b"hello"
        assert storage.upload(tmp_path / "x", "y")
        assert dict(storage.read_many(["x", "y"])) == {"x": b"hello", "y": b"hello"}
        assert storage.read_range("x", 1, 3) == b"el"
        assert storage.checksum("x", "md5") == "5d41402abc4b2a76b9719d911017c592"
        assert storage.copy("x", "z")
        assert storage.create("z", b"")
        assert storage.delete_many(["x", "y"]) == 2
        assert storage.stat("x").identifier == "x"
        client.generate_presigned_url.return_value = "https://example.org/x"
        assert storage.get_url("x") == "https://example.org/x"
        client.put_object.side_effect = _refusal("PutObject", "PreconditionFailed", 412)
        assert storage.create("z", b"") is False

    def test_bucket_is_created_once(self, client: MagicMock) -> None:
        client.list_objects_v2.side_effect = _refusal("ListObjectsV2", "NoSuchBucket", 404)
        storage = S3Storage("bucket", client=client, create_bucket=True)
        storage.write("x", b"")
        storage.write("y", b"")
        client.create_bucket.assert_called_once_with(Bucket="bucket")


class FakeClient:
    """As somebody writes it by hand: five methods over a dictionary."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def put_object(self, Bucket: str, Key: str, Body: bytes) -> dict[str, Any]:  # noqa: N803 - boto3's names
        self.objects[Key] = Body
        return {}

    def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        self._check("GetObject", Key)
        return {"Body": io.BytesIO(self.objects[Key])}

    def head_object(self, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        self._check("HeadObject", Key)
        return {"ContentLength": len(self.objects[Key])}

    def delete_object(self, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        self.objects.pop(Key, None)
        return {}

    def list_objects_v2(self, Bucket: str, Prefix: str = "") -> dict[str, Any]:  # noqa: N803 - boto3's names
        found = [
            {"Key": key, "Size": len(self.objects[key])} for key in self.objects if key.startswith(Prefix)
        ]
        return {"Contents": found} if found else {}

    def _check(self, operation: str, key: str) -> None:
        if key not in self.objects:
            raise _refusal(operation)


def test_hand_written_client_serves_the_seven_methods_and_streams(offline: None) -> None:
    client = FakeClient()
    storage = S3Storage("bucket", "pre", client=client)
    assert storage.write("b", b"hello")
    assert storage.write("a", io.BytesIO(b"world"))
    assert client.objects == {"pre/b": b"hello", "pre/a": b"world"}
    assert storage.read("b") == b"hello"
    assert storage.exists("b")
    assert not storage.exists("c")
    assert storage.size("b") == 5
    assert storage.list() == ["a", "b"]
    assert sorted(info.identifier for info in storage.scan("b")) == ["b"]
    with storage.open("b") as reader:
        assert reader.read() == b"hello"
    with storage.open("c", "wb") as writer:
        writer.write(b"new")
    assert storage.delete("b")
    with pytest.raises(NotFoundError):
        storage.delete("b")
    with pytest.raises(NotFoundError):
        storage.read("b")
    assert client.objects == {"pre/a": b"world", "pre/c": b"new"}


def test_plain_client_of_ours_goes_over_the_wire(server: S3Server, make: Make) -> None:
    """What the other tests compare with."""
    _use(make())
    assert _agents(server) == WIRE
