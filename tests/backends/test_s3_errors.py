"""What is wrong with a bucket, its credentials or the way to it is said in one error of its own, with what to do."""

from __future__ import annotations

import io
import logging
import os
import pickle
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import urllib3

from storage_backend import (
    AccessDeniedError,
    AuthenticationError,
    BatchError,
    BucketNotFoundError,
    ConfigurationError,
    InvalidIdentifierError,
    NotFoundError,
    S3Storage,
    StorageError,
    UnavailableError,
)
from storage_backend.backends.s3.errors import translate
from storage_backend.backends.s3.settings import MIB
from storage_backend.backends.s3.signed_requests import SignedRequests
from storage_backend.testing.subject import same
from tests.backends.test_s3_http import Authority
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.s3_server_faults import reply
from tests.tiers import few

TOKEN = "FwoGZXIvYXdzEXAMPLETOKEN/with+secret=="
LARGE = 11 * MIB  # goes in parts, and so by requests of boto3
HOUR = 3600


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's accounts, proxies and unfinished uploads."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(autouse=True)
def _no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3 keeps what it once found in the environment."""
    import boto3

    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Path]:
    pytest.importorskip("cryptography", reason="makes the certificate")
    directory = tmp_path_factory.mktemp("tls")
    return Authority(directory), directory / "pem"


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


@dataclass
class Place:
    """Where a scenario takes place."""

    server: S3Server
    stack: ExitStack
    request: pytest.FixtureRequest
    pauses: list[float] = field(default_factory=list)

    def storage(self, bucket: str = "bucket", **options: Any) -> S3Storage:
        """Of the server, with its keys, unless *options* say otherwise."""
        given = {
            "endpoint_url": self.server.url,
            "region": "us-east-1",
            "access_key": ACCESS_KEY,
            "secret_key": SECRET_KEY,
            "multipart_chunk_size": 5 * MIB,
            "multipart_threshold": 5 * MIB,
            "attempts": 2,
            "sleep": self.pauses.append,
            **options,
        }
        kept = {name: value for name, value in given.items() if value is not None}
        return self.stack.enter_context(S3Storage(bucket, **kept))


@pytest.fixture
def place(server: S3Server, stack: ExitStack, request: pytest.FixtureRequest) -> Place:
    return Place(server, stack, request)


def _large(storage: S3Storage) -> None:
    storage.write_stream("x", io.BytesIO(bytes(LARGE)))


def _written(storage: S3Storage) -> None:
    with storage.open("x", "wb") as writer:
        writer.write(b"new")


VERBS: dict[str, Callable[[S3Storage], object]] = {
    "exists": lambda storage: storage.exists("x"),
    "stat": lambda storage: storage.stat("x"),
    "read": lambda storage: storage.read("x"),
    "read_range": lambda storage: storage.read_range("x", 0, 2),
    "open": lambda storage: storage.open("x"),
    "open to write": _written,
    "checksum": lambda storage: storage.checksum("x"),
    "write": lambda storage: storage.write("x", b"new"),
    "write large": _large,
    "delete": lambda storage: storage.delete("x"),
    "delete_many": lambda storage: storage.delete_many(["x"]),
    "scan": lambda storage: list(storage.scan()),
    "list": lambda storage: storage.list("*"),
    "copy": lambda storage: storage.copy("x", "y"),
    "move": lambda storage: storage.move("x", "y"),
    "create": lambda storage: storage.create("new", b"new"),
    "abort_incomplete_uploads": lambda storage: storage.abort_incomplete_uploads(timedelta(0)),
}
WITHOUT_OBJECT = {"delete_many", "scan", "list", "abort_incomplete_uploads"}


def _denied(place: Place) -> S3Storage:
    place.server.allow_only([])
    return place.storage()


def _expired(place: Place) -> S3Storage:
    place.server.credentials.tokens[ACCESS_KEY] = TOKEN
    place.server.expired.add(TOKEN)
    return place.storage(session_token=TOKEN)


def _without_token(place: Place) -> S3Storage:
    place.server.credentials.tokens[ACCESS_KEY] = TOKEN
    return place.storage()


def _always(status: int, code: str) -> Callable[[Place], S3Storage]:
    def scenario(place: Place) -> S3Storage:
        place.server.faults.add(reply(status, code), times=None)
        return place.storage()

    return scenario


def _closed(place: Place) -> S3Storage:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return place.storage(endpoint_url=f"http://127.0.0.1:{port}")


def _untrusted(place: Place) -> S3Storage:
    authority, _ = place.request.getfixturevalue("authority")
    server = place.stack.enter_context(S3Server(ssl_context=authority.server))
    return place.storage(endpoint_url=server.url)


def _no_tls(place: Place) -> S3Storage:
    listener = place.stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def answer() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    place.stack.callback(thread.join)
    place.stack.callback(listener.shutdown, socket.SHUT_RDWR)
    return place.storage(endpoint_url=f"https://127.0.0.1:{listener.getsockname()[1]}")


@dataclass(frozen=True)
class Scenario:
    """Something that is wrong.

    Attributes:
        storage: has it.
        kind: the error, exactly.
        words: that its message has.
        parameter: of a ConfigurationError.
        retryable: whether trying again may help.
    """

    storage: Callable[[Place], S3Storage]
    kind: type[StorageError]
    words: str
    parameter: str | None = None
    retryable: bool = False


SCENARIOS = {
    "missing bucket": Scenario(
        lambda place: place.storage("absent"), BucketNotFoundError, "create it (create_bucket=True does)"
    ),
    "denied": Scenario(_denied, AccessDeniedError, "lack the permission"),
    "unknown access key": Scenario(
        lambda place: place.storage(access_key="AKIDUNKNOWN"), AuthenticationError, "check access_key"
    ),
    "wrong secret": Scenario(
        lambda place: place.storage(secret_key=SECRET_KEY[::-1]), AuthenticationError, "check access_key"
    ),
    "token missing": Scenario(_without_token, AuthenticationError, "check access_key"),
    "token expired": Scenario(_expired, AuthenticationError, "renew the credentials"),
    "clock wrong for good": Scenario(
        _always(403, "RequestTimeTooSkewed"), AuthenticationError, "the clock of this machine is wrong"
    ),
    "region unsaid, redirect": Scenario(
        _always(301, "PermanentRedirect"), ConfigurationError, "set region", "region"
    ),
    "region unsaid, malformed": Scenario(
        _always(400, "AuthorizationHeaderMalformed"), ConfigurationError, "set region", "region"
    ),
    "no credentials": Scenario(
        lambda place: place.storage(access_key=None, secret_key=None),
        AuthenticationError,
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    "unknown profile": Scenario(
        lambda place: place.storage(access_key=None, secret_key=None, profile="nobody"),
        ConfigurationError,
        "profile (nobody)",
        "profile",
    ),
    "nobody listens": Scenario(_closed, UnavailableError, "cannot", retryable=True),
    "unknown host": Scenario(
        lambda place: place.storage(endpoint_url="http://nowhere.invalid:9"),
        UnavailableError,
        "nowhere.invalid",
        retryable=True,
    ),
    "certificate not trusted": Scenario(_untrusted, AuthenticationError, "ca_bundle"),
    "no TLS there": Scenario(_no_tls, UnavailableError, "does not speak https", retryable=True),
    "no name of a bucket": Scenario(
        lambda place: place.storage("no bucket"), ConfigurationError, "bucket", "bucket"
    ),
    "secret not there": Scenario(
        lambda place: place.storage(secret_key="env:SB_NOWHERE"),
        ConfigurationError,
        "SB_NOWHERE",
        "secret_key",
    ),
}


@pytest.mark.parametrize(
    "name", few(sorted(SCENARIOS, key="unknown host".__eq__), len(SCENARIOS) - 1)
)  # some resolvers take their time
def test_error_says_what_where_and_what_to_do(
    place: Place, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    scenario = SCENARIOS[name]
    with caplog.at_level(logging.DEBUG, "storage_backend"):
        storage = scenario.storage(place)
        for verb, run in VERBS.items():
            with pytest.raises(StorageError) as caught:
                _unbatched(run, storage)
            _check(verb, scenario, storage, caught.value)
            _check_no_secret(caught.value, caplog)
            _check_pickles(caught.value)
    assert place.server.objects("bucket") == {"x": b"hello"}


def _unbatched(run: Callable[[S3Storage], object], storage: S3Storage) -> None:
    try:
        run(storage)
    except BatchError as error:
        raise error.failures["x"] from None


def _check(verb: str, scenario: Scenario, storage: S3Storage, error: StorageError) -> None:
    assert type(error) is scenario.kind, verb
    assert error.retryable is scenario.retryable, verb
    assert scenario.words in str(error), verb
    assert getattr(error, "parameter", None) == scenario.parameter, verb
    if isinstance(error, ConfigurationError):
        return
    assert str(error).startswith("cannot "), verb
    assert storage.location in str(error), verb
    assert error.backend == storage.location, verb
    assert verb in WITHOUT_OBJECT or repr(error.identifier) in str(error), verb


def _check_no_secret(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("storage_backend")]
    for text in (
        repr(error),
        str(error),
        repr(error.args),
        repr(vars(error)),
        "".join(traceback.format_exception(error)),
        *ours,
    ):
        for secret in (SECRET_KEY, SECRET_KEY[::-1], TOKEN):
            assert secret not in text


def _check_pickles(error: StorageError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.errno, vars(again)) == (str(error), error.errno, vars(error))


FIRST = ["exists", "read", "scan", "delete_many", "write large", "abort_incomplete_uploads"]


@pytest.mark.parametrize("answer", few(["malformed", "redirect"], 1))
@pytest.mark.parametrize("verb", FIRST)
def test_other_region_is_found_and_kept(place: Place, verb: str, answer: Any) -> None:
    place.server.create_bucket("far", region="eu-central-1")
    place.server.put("far", "x", b"hello")
    place.server.wrong_region = answer
    storage = place.storage("far")
    VERBS[verb](storage)
    assert len(place.server.rejected) <= 6  # several parts are under way
    place.server.rejected.clear()
    storage.write("after", b"1")
    assert storage.read("after") == b"1"
    assert storage.stat("after").size == 1
    settled = len(place.server.rejected)
    assert settled <= 1  # boto3 keeps to itself what its own request has learned
    _large(storage)
    assert list(storage.scan())
    _large(storage)
    assert len(place.server.rejected) == settled
    assert {record.operation for record in place.server.actions} & {
        "HeadBucket",
        "GetBucketLocation",
    } == set()
    assert same(storage.read("x"), bytes(LARGE))


@pytest.mark.parametrize("answer", few(["malformed", "redirect"], 1))
def test_other_region_that_another_thread_found_out_meanwhile_is_no_error(
    place: Place, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.server.create_bucket("far", region="eu-central-1")
    place.server.put("far", "x", b"hello")
    place.server.wrong_region = answer
    storage = place.storage("far")
    once: Any = SignedRequests._once
    others = ["another's"]

    def overtaken(*arguments: Any) -> Any:
        refused = once(*arguments)
        if others:
            others.pop()
            assert storage.read("x") == b"hello"
        return refused

    monkeypatch.setattr(SignedRequests, "_once", overtaken)
    assert storage.read("x") == b"hello"
    assert len(place.server.rejected) == 2


@pytest.mark.parametrize("off", few([-HOUR, HOUR], 1))
@pytest.mark.parametrize("verb", FIRST)
def test_wrong_clock_is_corrected_and_kept(place: Place, verb: str, off: float) -> None:
    place.server.clock = lambda: time.time() + off
    storage = place.storage()
    VERBS[verb](storage)
    assert "RequestTimeTooSkewed" in place.server.rejected
    assert len(place.server.rejected) <= 2
    place.server.rejected.clear()
    storage.write("after", b"1")
    assert storage.read("after") == b"1"
    _large(storage)
    assert same(storage.read("x"), bytes(LARGE))
    storage.abort_incomplete_uploads()
    assert place.server.rejected == []
    assert place.pauses == []


def test_clock_of_a_clients_caller_is_his(place: Place) -> None:
    import boto3

    place.server.clock = lambda: time.time() + HOUR
    client = boto3.client(
        "s3",
        endpoint_url=place.server.url,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )
    with pytest.raises(AuthenticationError, match="the clock of this machine is wrong"):
        S3Storage("bucket", client=client).read("x")


def test_certificate_is_trusted_by_ca_bundle(
    stack: ExitStack, place: Place, authority: tuple[Authority, Path]
) -> None:
    server = stack.enter_context(S3Server(ssl_context=authority[0].server))
    server.create_bucket("bucket")
    storage = place.storage(endpoint_url=server.url, ca_bundle=str(authority[1]))
    storage.write("x", b"hello")
    assert storage.read("x") == b"hello"
    _large(storage)
    assert same(storage.read("x"), bytes(LARGE))
    agents = {record.headers["user-agent"].partition("/")[0] for record in server.actions}
    assert agents == {"storage-backend", "Boto3"}


def test_certificate_is_not_asked_for_twice(place: Place) -> None:
    """Trying again does not make an authority trusted."""
    storage = _untrusted(place)
    with pytest.raises(AuthenticationError):
        storage.read("x")
    assert place.pauses == []


def test_ca_bundle_without_certificates_is_named(place: Place, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing\n")
    storage = place.storage(endpoint_url="https://127.0.0.1:9", ca_bundle=str(tmp_path / "empty.pem"))
    with pytest.raises(ConfigurationError, match=r"ca_bundle: .*empty\.pem") as caught:
        storage.read("x")
    assert caught.value.parameter == "ca_bundle"


def test_key_too_long_with_the_prefix_is_no_identifier(place: Place) -> None:
    storage = S3Storage(
        "bucket", "p" * 200, endpoint_url=place.server.url, access_key=ACCESS_KEY, secret_key=SECRET_KEY
    )
    with storage:
        storage.write("k" * 823, b"")  # with the prefix and a slash 1,024
        for verb in (storage.read, storage.delete, storage.size, storage.get_url):
            with pytest.raises(InvalidIdentifierError, match=r"1,024 bytes, the limit of S3"):
                verb("k" * 824)
        assert not storage.exists("k" * 824)
        with pytest.raises(InvalidIdentifierError, match="ppp"):
            storage.write("é" * 412, b"")


def test_archived_object_is_to_be_restored(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.server.faults.add(reply(403, "InvalidObjectState"), "GetObject", times=None)
    storage = place.storage()
    for verb in ("read", "read_range", "open", "checksum"):
        with pytest.raises(StorageError, match="the object is archived; restore it first") as caught:
            VERBS[verb](storage)
        assert type(caught.value) is StorageError
        assert not caught.value.retryable
        assert "'x' in s3://bucket" in str(caught.value)
        _check_no_secret(caught.value, caplog)
        _check_pickles(caught.value)
    assert storage.size("x") == 5


def test_missing_version_is_not_found(place: Place) -> None:
    place.server.create_bucket("versions", versioning=True)
    place.server.put("versions", "x", b"1")
    storage = place.storage("versions")
    for verb in (storage.read, storage.stat):
        with pytest.raises(NotFoundError):
            verb("x", version_id="v99999999")


def test_retryable_refusals_are_retried_and_then_told(place: Place) -> None:
    place.server.faults.add(reply(503, retry_after="7"), times=None)
    with pytest.raises(UnavailableError) as caught:
        place.storage(attempts=3).read("x")
    assert caught.value.attempts == 3
    assert caught.value.retryable
    assert getattr(caught.value, "retry_after", None) == 7
    assert place.pauses == [7, 7]


def test_message_of_a_failing_network_has_no_number() -> None:
    storage = S3Storage(
        "b",
        endpoint_url="http://127.0.0.1:9",
        region="x",
        access_key="a",
        secret_key="b",
        attempts=1,
    )
    with pytest.raises(UnavailableError) as caught:
        storage.read("x")
    assert "Connection refused" in str(caught.value)
    assert "[Errno" not in str(caught.value)


def test_a_connection_that_urllib3_saw_break_is_worth_another_try() -> None:
    error = urllib3.exceptions.ProtocolError("Connection broken")
    assert isinstance(translate(error, "a", "s3://bucket", "read"), UnavailableError)
