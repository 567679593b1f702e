"""S3Storage asks for no more rights than its documentation says, and tells what is missing, and what is forbidden."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from storage_backend import (
    AccessDeniedError,
    AuthenticationError,
    BatchError,
    BucketNotFoundError,
    NotFoundError,
    PreconditionFailedError,
    S3Storage,
)
from storage_backend.backends.s3.settings import MIB
from storage_backend.testing.subject import same
from tests.backends.test_s3 import storage_at
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.s3_server_faults import reply, reset
from tests.s3_server_wire import Request
from tests.s3_servers import BucketPlace

GET = "s3:GetObject"
PUT = "s3:PutObject"
LIST = "s3:ListBucket"
DELETE = "s3:DeleteObject"
ABORT = "s3:AbortMultipartUpload"
PARTS = "s3:ListMultipartUploadParts"
UPLOADS = "s3:ListBucketMultipartUploads"

PREFIXES = ["", "a/b"]
LARGE = 11 * MIB  # two parts of 5 MiB and a rest


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's accounts, proxies and unfinished uploads."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def server() -> Iterator[S3Server]:
    with S3Server() as server:
        server.create_bucket("bucket")
        yield server


Make = Callable[..., S3Storage]


@pytest.fixture
def make(server: S3Server) -> Iterator[Make]:
    with ExitStack() as closing:

        def make(prefix: str = "", *, bucket: str = "bucket", **options: Any) -> S3Storage:
            options = {"sleep": lambda _: None, "multipart_chunk_size": 5 * MIB, **options}
            return closing.enter_context(
                storage_at(BucketPlace(server.url, bucket, ACCESS_KEY, SECRET_KEY), prefix, **options)
            )

        yield make


@dataclass(frozen=True)
class Verb:
    """A use of the storage, and the IAM actions that it may need.

    Attributes:
        run: uses "x", which is there, and "new", which is not.
        actions: exactly what it needs.
    """

    run: Callable[[S3Storage, Path], object]
    actions: frozenset[str]


def _verb(run: Callable[[S3Storage, Path], object], *actions: str) -> Verb:
    return Verb(run, frozenset(actions))


def _read_open(storage: S3Storage, _: Path) -> None:
    with storage.open("x") as reader:
        reader.seek(2)
        assert reader.read() == b"llo"


def _write_open(storage: S3Storage, _: Path) -> None:
    with storage.open("new", "wb") as writer:
        writer.write(b"new")


def _write_open_large(storage: S3Storage, _: Path) -> None:
    with storage.open("new", "wb") as writer:
        writer.write(bytes(LARGE))


def _upload(size: int) -> Callable[[S3Storage, Path], object]:
    def upload(storage: S3Storage, scratch: Path) -> object:
        if not (scratch / "up").exists():
            (scratch / "up").write_bytes(bytes(size))
        return storage.upload(scratch / "up", "new")

    return upload


def _replace(storage: S3Storage, _: Path) -> object:
    # The MD5 of "hello", so that nothing need be read first.
    return storage.replace("x", b"other", "5d41402abc4b2a76b9719d911017c592")


READING = {
    "read": _verb(lambda storage, _: storage.read("x"), GET),
    "read_range": _verb(lambda storage, _: storage.read_range("x", 1, 3), GET),
    "open": _verb(_read_open, GET),
    "stat": _verb(lambda storage, _: storage.stat("x"), GET),
    "size": _verb(lambda storage, _: storage.size("x"), GET),
    "exists": _verb(lambda storage, _: storage.exists("x"), GET),
    "download": _verb(lambda storage, scratch: storage.download("x", scratch / "down"), GET),
    "checksum": _verb(lambda storage, _: storage.checksum("x"), GET),
    "scan": _verb(lambda storage, _: list(storage.scan()), LIST),
    "list": _verb(lambda storage, _: storage.list(), LIST),
    "list one level": _verb(lambda storage, _: storage.list("*"), LIST),
    "list deep": _verb(lambda storage, _: storage.list("x/**"), LIST),
    "read_many": _verb(lambda storage, _: list(storage.read_many(["x", "y"])), GET),
}
WRITING = {
    "write": _verb(lambda storage, _: storage.write("new", b"new"), PUT),
    "write over": _verb(lambda storage, _: storage.write("x", b"new"), PUT),
    "write_stream": _verb(lambda storage, _: storage.write_stream("new", io.BytesIO(b"new")), PUT),
    "write_many": _verb(lambda storage, _: storage.write_many([("new", b"1"), ("new2", b"2")]), PUT),
    "open to write": _verb(_write_open, PUT),
    "upload": _verb(_upload(10), PUT),
    "create": _verb(lambda storage, _: storage.create("new", b"new"), PUT),
    "replace": _verb(_replace, PUT),
    "write large": _verb(lambda storage, _: storage.write_stream("new", io.BytesIO(bytes(LARGE))), PUT),
    "open to write large": _verb(_write_open_large, PUT),
    "upload large": _verb(_upload(LARGE), PUT),
}
CHANGING = {
    "delete": _verb(lambda storage, _: storage.delete("x"), GET, DELETE),
    "delete_many": _verb(lambda storage, _: storage.delete_many(["x", "y"]), DELETE),
    "copy": _verb(lambda storage, _: storage.copy("x", "new"), GET, PUT),
    "move": _verb(lambda storage, _: storage.move("x", "new"), GET, PUT, DELETE),
}
OWN = {
    "abort_incomplete_uploads": _verb(
        lambda storage, _: storage.abort_incomplete_uploads(timedelta(0)), UPLOADS
    ),
}
VERBS = READING | WRITING | CHANGING | OWN


def _fill(server: S3Server, prefix: str) -> None:
    root = f"{prefix}/" if prefix else ""
    server.put("bucket", f"{root}x", b"hello")
    server.put("bucket", f"{root}y", b"world")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", VERBS)
def test_verb_needs_exactly_these_actions(
    server: S3Server, make: Make, tmp_path: Path, name: str, prefix: str
) -> None:
    _fill(server, prefix)
    verb = VERBS[name]
    storage = make(prefix, multipart_threshold=5 * MIB)
    server.allow_only(verb.actions)
    verb.run(storage, tmp_path)
    assert server.used() == verb.actions
    assert {record.status for record in server.actions} <= {200, 204, 206}
    assert server.rejected == []


@pytest.mark.parametrize("name", VERBS)
def test_denied_action_is_named_as_lack_of_permission(
    server: S3Server, make: Make, tmp_path: Path, name: str
) -> None:
    _fill(server, "")
    verb = VERBS[name]
    for missing in verb.actions:
        storage = make(multipart_threshold=5 * MIB)
        server.allow_only(verb.actions - {missing})
        with pytest.raises(AccessDeniedError) as caught:
            _unbatched(verb, storage, tmp_path)
        error = caught.value
        assert not isinstance(error, AuthenticationError)
        assert not error.retryable
        assert "permission" in str(error)
        assert storage.location in str(error)
        assert error.backend == storage.location
    assert server.stored("bucket", "x").body == b"hello"


def _unbatched(verb: Verb, storage: S3Storage, scratch: Path) -> None:
    try:
        verb.run(storage, scratch)
    except BatchError as error:
        raise next(iter(error.failures.values())) from None


@pytest.mark.parametrize("name", VERBS)
def test_missing_bucket_is_told_from_missing_object(
    server: S3Server, make: Make, tmp_path: Path, name: str
) -> None:
    storage = make(bucket="absent", multipart_threshold=5 * MIB)
    with pytest.raises(BucketNotFoundError, match="NoSuchBucket") as caught:
        _unbatched(VERBS[name], storage, tmp_path)
    assert "s3://absent" in str(caught.value)
    assert "create_bucket=True" in str(caught.value)
    assert not caught.value.retryable


MISSING: dict[str, Callable[[S3Storage, Path], object]] = {
    "read": lambda storage, _: storage.read("absent"),
    "read_range": lambda storage, _: storage.read_range("absent", 1, 3),
    "open": lambda storage, _: storage.open("absent"),
    "stat": lambda storage, _: storage.stat("absent"),
    "size": lambda storage, _: storage.size("absent"),
    "download": lambda storage, scratch: storage.download("absent", scratch / "down"),
    "checksum": lambda storage, _: storage.checksum("absent"),
    "delete": lambda storage, _: storage.delete("absent"),
    "copy": lambda storage, _: storage.copy("absent", "new"),
    "copy onto itself": lambda storage, _: storage.copy("absent", "absent"),
    "move": lambda storage, _: storage.move("absent", "new"),
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_object_is_no_missing_bucket(make: Make, tmp_path: Path, name: str) -> None:
    storage = make("a/b")
    with pytest.raises(NotFoundError, match="no object 'absent' in s3://bucket/a/b") as caught:
        MISSING[name](storage, tmp_path)
    assert not isinstance(caught.value, BucketNotFoundError)
    assert caught.value.identifier == "absent"
    assert not storage.exists("absent")


@pytest.mark.parametrize("name", MISSING)
def test_missing_object_without_right_to_list_is_forbidden_and_says_so(
    server: S3Server, make: Make, tmp_path: Path, name: str
) -> None:
    server.deny([LIST])
    with pytest.raises(
        AccessDeniedError, match="without s3:ListBucket a missing object gives the same response"
    ):
        MISSING[name](make(), tmp_path)
    with pytest.raises(AccessDeniedError, match="s3:ListBucket"):
        make().exists("absent")


def test_construction_and_what_needs_no_service_ask_nothing(server: S3Server, make: Make) -> None:
    storage = make("a/b")
    assert storage.client.meta.region_name == "us-east-1"
    assert storage.get_path("x") == "s3://bucket/a/b/x"
    assert storage.get_url("x").startswith(f"{server.url}/bucket/a/b/x?")
    assert not storage.exists("../x")
    assert storage.flush()
    repr(storage)
    assert (server.connections, server.actions, server.rejected) == (0, [], [])


def test_bucket_itself_is_never_asked_about(server: S3Server, make: Make, tmp_path: Path) -> None:
    """Not by HEAD, nor for its location: both need rights that a user of objects may lack."""
    for name, verb in VERBS.items():
        if name in OWN:
            continue
        _fill(server, "")
        verb.run(make(multipart_threshold=5 * MIB), tmp_path)
    assert not {"HeadBucket", "GetBucketLocation", "CreateBucket", "ListBuckets"} & {
        record.operation for record in server.actions
    }


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_listing_sends_the_prefix(server: S3Server, make: Make, prefix: str) -> None:
    """A policy may allow s3:ListBucket under a condition on s3:prefix only."""
    server.settings.page_size = 2
    root = f"{prefix}/" if prefix else ""
    for name in ("d/1", "d/2", "d/e/3", "x", "y", "z"):
        server.put("bucket", root + name, b"")
    storage = make(prefix)
    assert len(list(storage.scan())) == len(storage.list()) == 6
    assert storage.list("?") == ["x", "y", "z"]
    assert [info.identifier for info in storage.scan("d/")] == ["d/1", "d/2", "d/e/3"]
    assert storage.list("d/*") == ["d/1", "d/2"]
    assert storage.abort_incomplete_uploads() == 0
    asked = [record.query.get("prefix") for record in server.actions]
    assert len(asked) > 10  # more than one page each
    assert None not in asked
    assert {name for name in asked if name is not None} == {root, f"{root}d/"}


def test_stat_and_read_of_a_version_need_the_right_to_versions(server: S3Server, make: Make) -> None:
    server.create_bucket("versions", versioning=True)
    storage = make(bucket="versions")
    storage.write("x", b"1")
    old = server.stored("versions", "x").version
    storage.write("x", b"2")
    server.actions.clear()
    server.allow_only({"s3:GetObjectVersion"})
    assert storage.read("x", version_id=old) == b"1"
    assert storage.stat("x", version_id=old).size == 1
    assert server.used() == {"s3:GetObjectVersion"}


def test_large_upload_uses_the_requests_of_multipart_only(
    server: S3Server, make: Make, tmp_path: Path
) -> None:
    _upload(LARGE)(make(multipart_threshold=5 * MIB), tmp_path)
    assert [record.operation for record in server.actions[:1]] == ["CreateMultipartUpload"]
    assert sorted(record.operation for record in server.actions) == [
        "CompleteMultipartUpload",
        "CreateMultipartUpload",
        *["UploadPart"] * 3,
    ]


def test_failed_large_upload_is_aborted_by_the_right_to_abort(
    server: S3Server, make: Make, tmp_path: Path
) -> None:
    server.faults.add(reply(400, "InvalidRequest"), "UploadPart")
    with pytest.raises(OSError, match="InvalidRequest"):
        _upload(LARGE)(make(multipart_threshold=5 * MIB), tmp_path)
    assert server.used() == {PUT, ABORT}
    assert server.uploads("bucket") == {}


def test_upload_without_the_right_to_abort_names_the_cause_not_the_abort(
    server: S3Server, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.deny([ABORT])
    server.faults.add(reply(400, "InvalidRequest"), "UploadPart")
    with pytest.raises(OSError, match="InvalidRequest"):
        _upload(LARGE)(make(multipart_threshold=5 * MIB), tmp_path)
    assert len(server.uploads("bucket")) == 1
    assert "an unfinished upload of 'new' could not be aborted yet" in caplog.text


def test_only_a_resumed_upload_lists_parts(server: S3Server, make: Make, tmp_path: Path) -> None:
    server.deny([ABORT])
    server.faults.add(reply(400, "InvalidRequest"), "UploadPart", nth=3)
    first = make(multipart_threshold=5 * MIB, max_concurrency=1)
    with pytest.raises(OSError, match="InvalidRequest"):
        _upload(LARGE)(first, tmp_path)
    server.actions.clear()
    server.allow_only({PUT, PARTS})
    _upload(LARGE)(make(multipart_threshold=5 * MIB), tmp_path)
    assert server.used() == {PUT, PARTS}
    assert same(server.stored("bucket", "new").body, bytes(LARGE))
    assert server.uploads("bucket") == {}


@pytest.mark.parametrize("forbidden", [[PARTS], [ABORT], [PARTS, ABORT]])
@pytest.mark.parametrize("changed", [False, True])
def test_upload_left_behind_does_not_stop_who_may_not_touch_it(
    server: S3Server, make: Make, tmp_path: Path, forbidden: list[str], *, changed: bool
) -> None:
    server.deny([ABORT])
    server.faults.add(reply(400, "InvalidRequest"), "UploadPart", nth=3)
    with pytest.raises(OSError, match="InvalidRequest"):
        _upload(LARGE)(make(multipart_threshold=5 * MIB, max_concurrency=1), tmp_path)
    server.allow_only(None)
    server.deny(forbidden)
    storage_class = "STANDARD_IA" if changed else None  # the old upload cannot be gone on with
    _upload(LARGE)(make(multipart_threshold=5 * MIB, storage_class=storage_class), tmp_path)
    assert same(server.stored("bucket", "new").body, bytes(LARGE))
    resumed = not changed and PARTS not in forbidden
    assert len(server.uploads("bucket")) == (0 if resumed or ABORT not in forbidden else 1)


def test_copy_in_parts_needs_get_and_put(
    server: S3Server, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    server.settings.copy_limit = 6 * MIB
    server.put("bucket", "x", bytes(LARGE))
    server.allow_only({GET, PUT})
    make(multipart_threshold=5 * MIB).copy("x", "new")
    assert server.used() == {GET, PUT, "s3:GetObjectTagging"}
    assert "has no tags" in caplog.text
    assert same(server.stored("bucket", "new").body, bytes(LARGE))


def test_aborting_old_uploads_needs_list_and_abort(server: S3Server, make: Make) -> None:
    storage = make()
    storage.client.create_multipart_upload(Bucket="bucket", Key="left")
    server.actions.clear()
    server.allow_only({UPLOADS, ABORT})
    assert storage.abort_incomplete_uploads(timedelta(0)) == 1
    assert server.used() == {UPLOADS, ABORT}


@pytest.mark.parametrize("conditional", ["create", "replace"])
def test_conditional_write_looks_only_after_a_lost_answer(
    server: S3Server, make: Make, conditional: str
) -> None:
    server.put("bucket", "x", b"hello")
    storage = make()

    def run(content: bytes) -> object:
        if conditional == "create":
            return storage.create("new", content)
        return storage.replace("x", content, storage.stat("x").etag or "")

    storage.write("other", b"")
    server.actions.clear()
    server.faults.add(reset("applied"), "PutObject")
    run(b"mine")
    heads = [record for record in server.actions if record.operation == "HeadObject"]
    assert len(heads) == (1 if conditional == "create" else 2)
    assert server.stored("bucket", "new" if conditional == "create" else "x").body == b"mine"


def test_refused_condition_is_not_looked_into(server: S3Server, make: Make) -> None:
    server.put("bucket", "x", b"hello")
    server.allow_only({PUT})
    storage = make()
    assert storage.create("x", b"mine") is False
    with pytest.raises(PreconditionFailedError):
        storage.replace("x", b"mine", "0" * 32)
    with pytest.raises(PreconditionFailedError):
        make("elsewhere").replace("absent", b"mine", "0" * 32)
    assert {record.operation for record in server.actions} == {"PutObject"}
    assert server.objects("bucket") == {"x": b"hello"}


def test_denied_keys_of_a_batch_do_not_stop_the_others(server: S3Server, make: Make) -> None:
    _fill(server, "")
    server.put("bucket", "z", b"")
    server.deny([DELETE], "y")
    with pytest.raises(BatchError) as caught:
        make().delete_many(["x", "y", "z"])
    assert list(caught.value.failures) == ["y"]
    assert isinstance(caught.value.failures["y"], AccessDeniedError)
    assert list(server.objects("bucket")) == ["y"]


def test_bucket_is_created_once_when_it_is_asked_for(server: S3Server, make: Make) -> None:
    storage = make(bucket="fresh", create_bucket=True)
    assert server.actions == []
    storage.write("x", b"1")
    storage.write("y", b"2")
    assert storage.read("x") == b"1"
    operations = [record.operation for record in server.actions]
    looking = ["ListObjectsV2", "CreateBucket"]
    assert operations == [*looking, "PutObject", "PutObject", "GetObject"]


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-1"])
def test_bucket_that_is_there_is_not_created(region: str) -> None:
    with S3Server(region=region) as server:
        server.create_bucket("bucket")
        server.put("bucket", "x", b"hello")
        place = BucketPlace(server.url, "bucket", ACCESS_KEY, SECRET_KEY, region)
        for _ in range(2):
            with storage_at(place, create_bucket=True) as storage:
                assert storage.read("x") == b"hello"
        assert "CreateBucket" not in {record.operation for record in server.actions}


def test_who_may_only_write_can_say_create_bucket(server: S3Server, make: Make) -> None:
    server.allow_only({"s3:PutObject"})
    assert make(create_bucket=True).write("x", b"hello")
    assert server.objects("bucket") == {"x": b"hello"}


def test_bucket_that_others_create_meanwhile_is_used(server: S3Server, make: Make) -> None:
    def create(request: Request) -> None:  # in the middle of ours
        if request.method == "PUT" and request.path == "/fresh":
            server.create_bucket("fresh")

    server.faults.choose = create
    assert make(bucket="fresh", create_bucket=True).write("x", b"hello")


def test_bucket_is_created_in_the_region() -> None:
    with S3Server(region="eu-west-1") as server:
        place = BucketPlace(server.url, "fresh", ACCESS_KEY, SECRET_KEY, "eu-west-1")
        with storage_at(place, create_bucket=True) as storage:
            storage.write("x", b"")
            assert storage.client.get_bucket_location(Bucket="fresh")["LocationConstraint"] == "eu-west-1"
        sent = next(record for record in server.actions if record.operation == "CreateBucket")
        assert int(sent.headers["content-length"]) > 0


def test_bucket_that_may_not_be_created_is_used_if_it_is_there(server: S3Server, make: Make) -> None:
    server.put("bucket", "x", b"hello")
    server.deny(["s3:CreateBucket"])
    assert make(create_bucket=True).read("x") == b"hello"
    with pytest.raises(BucketNotFoundError):
        make(bucket="absent", create_bucket=True).read("x")
