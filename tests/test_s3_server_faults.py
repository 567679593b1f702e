"""What the S3 server of the tests does wrong on purpose is exactly what was asked for."""

from __future__ import annotations

import hashlib
import http.client
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self
from xml.etree import ElementTree as ET

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from storage_backend.testing.subject import same
from tests import s3_server_faults as faults
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.s3_server_faults import Fault
from tests.s3_server_wire import Request
from tests.test_s3_server import self_signed

BODY = bytes(range(256)) * 16


@pytest.fixture
def server() -> Iterator[S3Server]:
    with S3Server(anonymous=True) as server:
        server.create_bucket("bucket")
        server.put("bucket", "key", BODY)
        yield server


class Wire:
    """One connection, and what is seen on it byte by byte."""

    def __init__(self, server: S3Server) -> None:
        self.sock = socket.create_connection(("127.0.0.1", server.port), timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, method: str, target: str, body: bytes = b"", *headers: str) -> None:
        lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}", *headers]
        self.sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def rest(self) -> tuple[bytes, str]:
        """All that comes until the end, and how it ends: "closed" or "reset"."""
        found = b""
        while True:
            try:
                data = self.sock.recv(1 << 16)
            except ConnectionResetError:
                return found, "reset"
            if not data:
                return found, "closed"
            found += data

    def answer(self, method: str = "GET") -> tuple[int, bytes]:
        """One whole answer; the connection stays."""
        found = http.client.HTTPResponse(self.sock, method=method)
        found.begin()
        return found.status, found.read()


def exchange(
    server: S3Server, method: str, target: str, body: bytes = b"", *headers: str
) -> tuple[bytes, str]:
    """What is seen of one request on a connection of its own."""
    with Wire(server) as wire:
        wire.send(method, target, body, "Connection: close", *headers)
        return wire.rest()


def split(data: bytes) -> tuple[bytes, bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    return head, body


class TestResets:
    def test_connection_is_reset_when_it_is_accepted(self, server: S3Server) -> None:
        server.faults.reset_connections(2)
        for _ in range(2):
            with (
                pytest.raises(ConnectionResetError),
                Wire(server) as wire,
            ):  # in connect(), if the reset is quick
                wire.sock.recv(1)
        assert exchange(server, "GET", "/bucket/key")[1] == "closed"
        assert len(server.actions) == 1

    def test_after_the_head_nothing_is_done(self, server: S3Server) -> None:
        server.faults.add(faults.reset("head"))
        with Wire(server) as wire:
            wire.sock.sendall(b"PUT /bucket/new HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")
            assert wire.rest() == (b"", "reset")
        assert server.actions == []
        assert "new" not in server.objects("bucket")

    @pytest.mark.parametrize("chunked", [False, True])
    def test_in_the_request_body_only_those_bytes_are_awaited(self, server: S3Server, chunked: bool) -> None:
        server.faults.add(faults.reset("request_body", 8))
        framing = "Transfer-Encoding: chunked" if chunked else "Content-Length: 1000"
        with Wire(server) as wire:
            wire.sock.sendall(f"PUT /bucket/new HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n3e8\r\n12".encode())
            wire.sock.settimeout(0.05)
            with pytest.raises(TimeoutError):
                wire.sock.recv(1)
            wire.sock.settimeout(30)
            wire.sock.sendall(b"3")
            assert wire.rest() == (b"", "reset")
        assert "new" not in server.objects("bucket")
        assert server.actions[0].status is None

    @pytest.mark.parametrize(("moment", "applied"), [("before_applied", False), ("applied", True)])
    def test_after_the_whole_body_it_is_applied_or_not(
        self, server: S3Server, moment: faults.Moment, applied: bool
    ) -> None:
        server.faults.add(faults.reset(moment), "PutObject")
        assert exchange(server, "PUT", "/bucket/new", b"content") == (b"", "reset")
        assert ("new" in server.objects("bucket")) is applied
        server.faults.add(faults.reset(moment), "DeleteObject")
        assert exchange(server, "DELETE", "/bucket/key") == (b"", "reset")
        assert ("key" in server.objects("bucket")) is not applied

    @pytest.mark.parametrize("after", [0, 1, 20])
    def test_in_the_answers_head(self, server: S3Server, after: int) -> None:
        server.faults.add(faults.reset("response_head", after))
        assert exchange(server, "GET", "/bucket/key") == (b"HTTP/1.1 200 OK\r\nDate: "[:after], "reset")

    @pytest.mark.parametrize("after", [0, 1, 1000, len(BODY)])
    def test_in_the_answers_body(self, server: S3Server, after: int) -> None:
        server.faults.add(faults.reset("response_body", after))
        data, end = exchange(server, "GET", "/bucket/key")
        head, body = split(data)
        assert f"Content-Length: {len(BODY)}".encode() in head
        assert same(body, BODY[:after])
        assert end == "reset"

    def test_all_bytes_before_a_reset_arrive_at_a_slow_reader(self, server: S3Server) -> None:
        large = random.Random(1).randbytes(8 << 20)
        server.put("bucket", "large", large)
        server.faults.add(faults.reset("response_body", 7 << 20))
        data, end = exchange(server, "GET", "/bucket/large")
        assert same(split(data)[1], large[: 7 << 20])
        assert end == "reset"

    def test_in_the_body_of_a_chunked_answer(self, server: S3Server) -> None:
        server.faults.add(faults.reset("response_body", 5))
        data, end = exchange(server, "GET", "/bucket?list-type=2")
        assert re.fullmatch(rb"[0-9a-f]+\r\n<\?xml", split(data)[1])
        assert end == "reset"


class TestStaleConnections:
    def test_kept_connection_is_closed_when_idle(self, server: S3Server) -> None:
        server.faults.add(faults.stale())
        with Wire(server) as wire:
            wire.send("GET", "/bucket/key")
            assert wire.answer() == (200, BODY)
            assert wire.rest() == (b"", "closed")

    def test_kept_connection_is_reset_when_idle(self, server: S3Server) -> None:
        server.faults.add(faults.stale("reset"))
        with Wire(server) as wire:
            wire.send("GET", "/bucket/key")
            data, end = wire.rest()
            assert b"Connection: close" not in split(data)[0]
            assert (split(data)[1], end) == (BODY, "reset")

    def test_kept_connection_is_reset_by_the_next_request(self, server: S3Server) -> None:
        server.faults.add(faults.stale("next"))
        with Wire(server) as wire:
            wire.send("GET", "/bucket/key")
            assert wire.answer() == (200, BODY)
            wire.sock.settimeout(0.05)
            with pytest.raises(TimeoutError):
                wire.sock.recv(1)
            wire.sock.settimeout(30)
            wire.send("PUT", "/bucket/new", b"content")
            assert wire.rest() == (b"", "reset")
        assert "new" not in server.objects("bucket")
        assert [each.operation for each in server.actions] == ["GetObject"]

    def test_rule_for_reused_connections_spares_new_ones(self, server: S3Server) -> None:
        server.faults.add(faults.reset("head"), reused=True)
        assert exchange(server, "GET", "/bucket/key")[1] == "closed"
        with Wire(server) as wire:
            wire.send("GET", "/bucket/key")
            assert wire.answer() == (200, BODY)
            wire.send("GET", "/bucket/key")
            assert wire.rest() == (b"", "reset")


class TestErrorReplies:
    @pytest.mark.parametrize(
        ("status", "code"), [(500, "InternalError"), (503, "SlowDown"), (429, "TooManyRequests")]
    )
    def test_reply_with_a_document(self, server: S3Server, status: int, code: str) -> None:
        server.faults.add(faults.reply(status, retry_after="7"))
        with Wire(server) as wire:
            wire.send("PUT", "/bucket/new", b"content")
            answer = http.client.HTTPResponse(wire.sock)
            answer.begin()
            assert (answer.status, answer.getheader("Retry-After")) == (status, "7")
            assert ET.fromstring(answer.read()).findtext("Code") == code
            assert "new" not in server.objects("bucket")
            wire.send("PUT", "/bucket/new", b"content")
            assert wire.answer()[0] == 200
        assert [each.status for each in server.actions] == [status, 200]

    def test_reply_without_a_document(self, server: S3Server) -> None:
        server.faults.add(faults.reply(503, xml=False))
        data, _ = exchange(server, "GET", "/bucket/key")
        assert b"Retry-After" not in data
        assert split(data)[1].startswith(b"<html>")

    def test_reply_to_head_has_no_body(self, server: S3Server) -> None:
        server.faults.add(faults.reply(503))
        assert split(exchange(server, "HEAD", "/bucket/key")[0])[1] == b""

    def test_reply_may_come_although_it_was_applied(self, server: S3Server) -> None:
        server.faults.add(faults.reply(500, applied=True))
        assert exchange(server, "PUT", "/bucket/new", b"content")[0].startswith(b"HTTP/1.1 500 ")
        assert server.objects("bucket")["new"] == b"content"

    def test_early_reply_does_not_wait_for_the_body(self, server: S3Server) -> None:
        server.faults.add(faults.reply(503, early=True))
        with Wire(server) as wire:
            wire.sock.sendall(b"PUT /bucket/new HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")
            data, end = wire.rest()
        assert data.startswith(b"HTTP/1.1 503 ")
        assert b"Connection: close" in data
        assert end == "closed"

    @pytest.mark.parametrize("applied", [False, True])
    def test_200_with_an_error(self, server: S3Server, applied: bool) -> None:
        server.faults.add(faults.error_200("SlowDown", applied=applied, padding=100), "CopyObject")
        with Wire(server) as wire:
            wire.send("PUT", "/bucket/copy", b"", "x-amz-copy-source: bucket/key")
            status, document = wire.answer()
        assert status == 200
        assert b"?>\n" + b" " * 100 + b"<Error>" in document
        assert ET.fromstring(document).findtext("Code") == "SlowDown"
        assert ("copy" in server.objects("bucket")) is applied

    def test_boto3_takes_200_with_an_error_for_an_error(self, server: S3Server) -> None:
        client = client_of(server)
        upload = {"Bucket": "bucket", "Key": "new"}
        upload["UploadId"] = client.create_multipart_upload(**upload)["UploadId"]
        parts = [
            {"PartNumber": 1, "ETag": client.upload_part(**upload, PartNumber=1, Body=b"content")["ETag"]}
        ]
        server.faults.add(faults.error_200(padding=10), "CompleteMultipartUpload")
        with pytest.raises(ClientError, match="InternalError"):
            client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        assert list(server.uploads("bucket")) == [upload["UploadId"]]
        client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        assert server.objects("bucket")["new"] == b"content"


class TestSpoiltBodies:
    @pytest.mark.parametrize("after", [0, 1, 1000])
    def test_body_shorter_than_its_length(self, server: S3Server, after: int) -> None:
        server.faults.add(faults.truncate(after))
        data, end = exchange(server, "GET", "/bucket/key")
        head, body = split(data)
        assert f"Content-Length: {len(BODY)}".encode() in head
        assert same(body, BODY[:after])
        assert end == "closed"

    def test_document_shorter_than_its_length(self, server: S3Server) -> None:
        server.faults.add(faults.truncate(60), "ListObjectsV2")
        with Wire(server) as wire:
            wire.send("GET", "/bucket?list-type=2")
            with pytest.raises(http.client.IncompleteRead):
                wire.answer()

    def test_chunked_body_lies_without_a_trace(self, server: S3Server) -> None:
        server.faults.add(faults.truncate(1000, chunked=True))
        with Wire(server) as wire:
            wire.send("GET", "/bucket/key")
            assert wire.answer() == (200, BODY[:1000])
            wire.send("GET", "/bucket/key")
            assert wire.answer() == (200, BODY)

    def test_one_byte_of_the_answer_is_changed(self, server: S3Server) -> None:
        server.faults.add(faults.corrupt_response(len(BODY) + 5))
        found = split(exchange(server, "GET", "/bucket/key")[0])[1]
        assert [place for place, byte in enumerate(found) if byte != BODY[place]] == [5]
        assert len(found) == len(BODY)
        assert same(server.objects("bucket")["key"], BODY)

    def test_changed_request_is_stored_or_refused_by_its_digest(self, server: S3Server) -> None:
        server.faults.add(faults.corrupt_request(2), times=3)
        exchange(server, "PUT", "/bucket/new", b"content")
        assert server.objects("bucket")["new"] == b"coutent".replace(b"u", bytes([ord("n") ^ 1]))
        digest = hashlib.sha256(b"content").hexdigest()
        data, _ = exchange(server, "PUT", "/bucket/more", b"content", f"x-amz-content-sha256: {digest}")
        assert b"XAmzContentSHA256Mismatch" in data
        with pytest.raises(ClientError, match=r"BadDigest|XAmzContentSHA256Mismatch"):
            client_of(server).put_object(Bucket="bucket", Key="more", Body=b"content")
        assert "more" not in server.objects("bucket")

    def test_range_is_answered_with_the_whole(self, server: S3Server) -> None:
        server.faults.add(faults.ignore_range())
        data, _ = exchange(server, "GET", "/bucket/key", b"", "Range: bytes=1-2")
        assert data.startswith(b"HTTP/1.1 200 ")
        assert same(split(data)[1], BODY)
        assert split(exchange(server, "GET", "/bucket/key", b"", "Range: bytes=1-2")[0])[1] == BODY[1:3]


class TestStalls:
    def test_stall_lasts_and_ends(self, server: S3Server) -> None:
        server.faults.add(faults.stall(0.2, "response_body", 10))
        started = time.monotonic()
        data, end = exchange(server, "GET", "/bucket/key")
        assert time.monotonic() - started >= 0.2
        assert (split(data)[1], end) == (BODY, "closed")

    @pytest.mark.parametrize(("moment", "seen"), [("response_head", 0), ("response_body", 10)])
    def test_stall_is_where_it_was_asked_for_and_ends_with_the_server(
        self, moment: faults.Moment, seen: int
    ) -> None:
        with S3Server(anonymous=True) as server:
            server.create_bucket("bucket")
            server.put("bucket", "key", BODY)
            server.faults.add(faults.stall(3600, moment, seen))
            with Wire(server) as wire:
                wire.send("GET", "/bucket/key")
                data = b""
                while len(split(data)[1]) < seen:
                    data += wire.sock.recv(1 << 16)
                wire.sock.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    wire.sock.recv(1)
                server.stop()  # which fails if a thread does not end
        assert len(split(data)[1]) == seen

    def test_stall_in_the_request_body_goes_on_afterwards(self, server: S3Server) -> None:
        server.faults.add(faults.stall(0.01, "request_body", 100))
        exchange(server, "PUT", "/bucket/new", BODY)
        assert same(server.objects("bucket")["new"], BODY)


class TestPlans:
    def test_rules_count_the_requests_that_match(self, server: S3Server) -> None:
        server.faults.add(faults.reply(500), "GetObject", key="key", nth=2, times=2)
        seen = []
        for target in ("/bucket/key", "/bucket/none", "/bucket/key", "/bucket/key", "/bucket/key"):
            with Wire(server) as wire:
                wire.send("GET", target)
                seen.append(wire.answer()[0])
        assert seen == [200, 404, 500, 500, 200]
        assert server.faults.pending == 0
        assert [(each.operation, each.key) for each in server.faults.fired] == [("GetObject", "key")] * 2

    def test_rule_without_an_end_lasts_until_it_is_cleared(self, server: S3Server) -> None:
        server.faults.add(faults.reply(500), times=None)
        for _ in range(5):
            assert exchange(server, "GET", "/bucket/key")[0].startswith(b"HTTP/1.1 500 ")
        server.faults.clear()
        assert exchange(server, "GET", "/bucket/key")[0].startswith(b"HTTP/1.1 200 ")

    def test_choice_sees_the_request(self, server: S3Server) -> None:
        def choose(request: Request) -> Fault | None:
            return faults.reply(500) if request.headers.get("x-wish") == "fail" else None

        server.faults.choose = choose
        assert exchange(server, "GET", "/bucket/key")[0].startswith(b"HTTP/1.1 200 ")
        assert exchange(server, "GET", "/bucket/key", b"", "x-wish: fail")[0].startswith(b"HTTP/1.1 500 ")

    def test_reset_and_close_reach_the_client_through_tls(self, tmp_path: Path) -> None:
        certificate = self_signed(tmp_path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        trust = ssl.create_default_context(cafile=certificate)
        with S3Server(ssl_context=context, anonymous=True) as server:
            server.create_bucket("bucket")
            server.put("bucket", "key", BODY)
            for fault in (faults.reset("applied"), faults.reset("response_body", 10), faults.truncate(10)):
                server.faults.add(fault)
                connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=30, context=trust)
                with pytest.raises((OSError, http.client.HTTPException)):
                    read(connection)
                connection.close()
                assert read(connection) == BODY
                connection.close()

    @pytest.mark.soak
    def test_boto3_meets_a_thousand_random_faults_and_no_thread_of_the_server_fails(self) -> None:
        kinds: list[Callable[[random.Random], Fault]] = [
            lambda _: faults.reset("head"),
            lambda dice: faults.reset("request_body", dice.randrange(5000)),
            lambda _: faults.reset("before_applied"),
            lambda _: faults.reset("applied"),
            lambda dice: faults.reset("response_head", dice.randrange(300)),
            lambda dice: faults.reset("response_body", dice.randrange(5000)),
            lambda dice: faults.reply(503, early=dice.random() < 0.5, xml=dice.random() < 0.5),
            lambda dice: faults.error_200(applied=dice.random() < 0.5),
            lambda dice: faults.truncate(dice.randrange(5000), chunked=dice.random() < 0.5),
            lambda dice: faults.corrupt_request(dice.randrange(5000)),
            lambda dice: faults.corrupt_response(dice.randrange(5000)),
            lambda dice: faults.stale(dice.choice(("close", "reset", "next"))),
        ]
        dice, lock = random.Random(11), threading.Lock()

        def choose(_: Request) -> Fault:
            with lock:
                return dice.choice(kinds)(dice)

        with S3Server() as server:
            server.create_bucket("bucket")
            server.faults.choose = choose
            client = client_of(server)
            done = 0
            for number in range(1000):
                try:
                    if number % 3 == 0:
                        client.put_object(Bucket="bucket", Key=f"{number % 30}", Body=BODY)
                    elif number % 3 == 1:
                        client.get_object(Bucket="bucket", Key=f"{(number - 1) % 30}")["Body"].read()
                    else:
                        client.list_objects_v2(Bucket="bucket")
                except (ClientError, BotoCoreError, HTTPError):
                    continue
                done += 1
            assert len(server.faults.fired) >= 900
            assert 0 < done < 1000
            assert set(server.objects("bucket").values()) == {BODY}


def read(connection: http.client.HTTPConnection) -> bytes:
    connection.request("GET", "/bucket/key")
    with connection.getresponse() as answer:
        return answer.read()


def client_of(server: S3Server) -> Any:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(
            retries={"max_attempts": 0, "mode": "standard"},
            s3={"addressing_style": "path"},
            connect_timeout=10,
            read_timeout=30,
            proxies={},
        ),
    )
