"""The S3 servers that other tests rely on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import unavailable
from tests.s3_servers import MotoServer, RcloneS3, S3Server
from tests.servers import PATIENCE, ServerUnavailableError

REPOSITORY = Path(__file__).parent.parent
ODD = "d/\x01\uffff é+%😀"

pytestmark = pytest.mark.soak  # of the tests' own servers: what uses them notices as well


@pytest.fixture(params=["moto", "rclone"])
def session_server(request: pytest.FixtureRequest) -> S3Server:
    name = {"moto": "moto_server", "rclone": "rclone_s3_server"}[request.param]
    server: S3Server = request.getfixturevalue(name)
    return server


@pytest.fixture(params=[MotoServer, RcloneS3])
def own_server(request: pytest.FixtureRequest) -> Iterator[S3Server]:
    """A server that the test may kill."""
    try:
        server: S3Server = request.param()
    except ServerUnavailableError as error:
        unavailable(str(error))
    yield server
    server.stop()


def test_bucket_is_empty_and_goes_with_its_objects(session_server: S3Server) -> None:
    client = session_server.client()
    with session_server.bucket() as first, session_server.bucket() as second:
        for key in ("a", ODD):
            client.put_object(Bucket=first, Key=key, Body=b"content")
        found = [each["Key"] for each in client.list_objects_v2(Bucket=first)["Contents"]]
        assert found == ["a", ODD]
        assert client.list_objects_v2(Bucket=second).get("Contents", []) == []
    if isinstance(session_server, RcloneS3):
        assert not (session_server.objects / first).exists()
    else:
        assert first not in {each["Name"] for each in client.list_buckets()["Buckets"]}


def test_place_is_all_that_a_client_needs(session_server: S3Server) -> None:
    import boto3

    with session_server.place() as place:
        client = boto3.client(
            "s3",
            endpoint_url=place.url,
            aws_access_key_id=place.access_key,
            aws_secret_access_key=place.secret_key,
            region_name=place.region,
        )
        client.put_object(Bucket=place.bucket, Key="a", Body=b"content")
        assert client.get_object(Bucket=place.bucket, Key="a")["Body"].read() == b"content"


def test_halted_server_refuses_and_comes_back_on_its_port(own_server: S3Server) -> None:
    with own_server.bucket() as bucket:
        own_server.client().put_object(Bucket=bucket, Key="a", Body=b"content")
        own_server.halt()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", own_server.port), PATIENCE)
        url = own_server.url
        own_server.start()
        assert own_server.url == url
        if isinstance(own_server, RcloneS3):
            assert own_server.client().get_object(Bucket=bucket, Key="a")["Body"].read() == b"content"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl(2) is Linux's")
@pytest.mark.parametrize("kind", [MotoServer, RcloneS3])
def test_server_ends_with_a_killed_test_run(kind: type[S3Server], tmp_path: Path) -> None:
    program = (
        f"from tests.s3_servers import {kind.__name__} as K; s = K(); print(s.port, flush=True); input()"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env=os.environ | {"TMPDIR": str(tmp_path)},  # what it has no time to remove is removed with that
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    try:
        line = run.stdout.readline()
        if not line:
            unavailable(f"{kind.__name__} does not start")
        port = int(line)
        with socket.create_connection(("127.0.0.1", port), PATIENCE):
            pass
        os.kill(run.pid, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), PATIENCE).close()
            except ConnectionRefusedError:
                return
            except ConnectionResetError:
                continue  # just dying
        pytest.fail("the server outlived the program that started it")
    finally:
        run.kill()
        run.communicate()
