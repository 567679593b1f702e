"""A small, strict S3 server in memory, which logs actions and can fail on purpose."""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate
from typing import Literal, Self

from tests.s3_server_auth import Credentials, Verifier
from tests.s3_server_faults import Fault, Faults, Moment
from tests.s3_server_forms import denied
from tests.s3_server_integrity import corrupted, receive
from tests.s3_server_listing import Listing
from tests.s3_server_objects import Objects
from tests.s3_server_routes import UNKNOWN, Permissions, needed, route
from tests.s3_server_store import Bucket, Settings, Stored, Upload, md5
from tests.s3_server_uploads import Uploads
from tests.s3_server_wire import (
    Connection,
    ConnectionLostError,
    Request,
    Response,
    S3Error,
    error_document,
    framed,
    head_of,
    xml,
)

ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
PATIENCE = 60.0  # seconds for a connection's thread to end


@dataclass(slots=True)
class Record:
    """One request that was let in.

    Attributes:
        action: the IAM action that it needs; for several, the main one.
        actions: all that it needs.
        status: of the answer; None until there is one, and for good if a fault came before it.
        headers: with lower-case names.
        connection: the number of its connection, from 1.
    """

    action: str
    actions: tuple[str, ...]
    operation: str
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    connection: int
    status: int | None = None


class S3Server:
    """An S3 service on a free port of 127.0.0.1, for path-style addresses and `bucket.localhost`.

    Args:
        region: of the buckets, unless they say otherwise.
        ssl_context: serve HTTPS with it.
        anonymous: let in who does not sign.
        clock: POSIX seconds; `clock` may be set later, too.

    Attributes:
        url: without a slash at the end.
        credentials: the keys it knows; `ACCESS_KEY` with `SECRET_KEY` at first.
        expired: session tokens that are refused as expired.
        settings: limits and page size, to be set at any time.
        faults: what it does wrong on purpose.
        actions: the requests that were let in, in the order in which they came.
        rejected: the codes of those that were not.
        connections: how many were accepted.
    """

    def __init__(
        self,
        *,
        region: str = "us-east-1",
        ssl_context: ssl.SSLContext | None = None,
        anonymous: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.region = region
        self.anonymous = anonymous
        self.clock = clock
        self.settings = Settings()
        self.faults = Faults()
        self.actions: list[Record] = []
        self.rejected: list[str] = []
        self.connections = 0
        self.credentials = Credentials({ACCESS_KEY: SECRET_KEY})
        self.expired = self.credentials.expired
        self.permissions = Permissions()
        self._objects = Objects(self._now, region, self.permissions, self.settings)
        self._verifier = Verifier(self.credentials, self._region_of, self._now)
        self._verbs = _verbs(self._objects, Uploads(self._objects))
        self._ids = itertools.count(1)
        self._context = ssl_context
        self._stopping = threading.Event()
        self._open: dict[threading.Thread, socket.socket] = {}
        self._failures: list[Exception] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if ssl_context else 'http'}://127.0.0.1:{self.port}"
        self._acceptor = threading.Thread(target=self._accept, name="s3-server", daemon=True)

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def wrong_region(self) -> Literal["malformed", "redirect"]:
        """The answer to a signature for another region: 400 AuthorizationHeaderMalformed, or 301 PermanentRedirect."""
        return self._verifier.wrong_region

    @wrong_region.setter
    def wrong_region(self, answer: Literal["malformed", "redirect"]) -> None:
        self._verifier.wrong_region = answer

    def create_bucket(self, name: str, *, region: str | None = None, versioning: bool = False) -> None:
        """Make an empty bucket."""
        with self._objects.lock:
            self._objects.buckets[name] = Bucket(name, region or self.region, versioning=versioning)

    def put(self, bucket: str, key: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Store an object directly; *headers* are kept with it and have lower-case names."""
        with self._objects.lock:
            into = self._objects.bucket(bucket)
            version = into.next_version()
            into.put(key, Stored(body, md5(body), self.clock(), dict(headers or {}), version=version))

    def stored(self, bucket: str, key: str) -> Stored:
        """The object with what is kept beside its bytes.

        Raises:
            KeyError: there is none.
        """
        with self._objects.lock:
            return self._objects.bucket(bucket).items()[key]

    def objects(self, bucket: str) -> dict[str, bytes]:
        """Key -> bytes, in the order of listings."""
        with self._objects.lock:
            return {key: stored.body for key, stored in self._objects.bucket(bucket).items().items()}

    def uploads(self, bucket: str) -> dict[str, Upload]:
        """Id -> unfinished upload."""
        with self._objects.lock:
            return dict(self._objects.bucket(bucket).uploads)

    def deny(self, actions: Iterable[str], key: str = "*") -> None:
        """Refuse these IAM actions from now on, for keys like *key*."""
        self.permissions.deny(actions, key)

    def allow_only(self, actions: Iterable[str] | None) -> None:
        """Refuse all other IAM actions from now on, and forget what was denied; None allows everything again."""
        self.permissions.allow_only(actions)

    def used(self) -> set[str]:
        """The IAM actions that the requests so far needed."""
        return {action for record in list(self.actions) for action in record.actions}

    def stop(self) -> None:
        """End all connections and threads.

        Raises:
            Exception: what went wrong in the server itself, if anything did.
        """
        self._stopping.set()
        if self._acceptor.is_alive():
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port)).close()
            self._acceptor.join(PATIENCE)
        self._listener.close()
        for thread, sock in list(self._open.items()):
            with contextlib.suppress(OSError):
                # SSLSocket's own would take the session away under the thread that uses it.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            thread.join(PATIENCE)
            if thread.is_alive():
                raise RuntimeError(f"the thread of a connection does not end: {thread.name}")
        if self._failures:
            raise self._failures[0]

    def _now(self) -> float:
        return self.clock()  # which tests may replace

    def _region_of(self, name: str) -> str:
        bucket = self._objects.buckets.get(name)
        return self.region if bucket is None else bucket.region

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            if self._stopping.is_set():
                sock.close()
                return
            self.connections += 1
            if self.faults.resets_connection():
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            thread = threading.Thread(target=self._serve, args=(sock, self.connections), daemon=True)
            self._open[thread] = sock
            thread.start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        connection = Connection(sock, number)
        try:
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            while (request := connection.request()) is not None:
                if not self._exchange(connection, request):
                    break
        except (ConnectionLostError, OSError):
            pass
        except Exception as error:  # noqa: BLE001 - `stop` raises it in the test
            self._failures.append(error)
        finally:
            sock.close()
            self._open.pop(threading.current_thread(), None)

    def _exchange(self, connection: Connection, request: Request) -> bool:
        """Serve one request; whether the connection is kept."""
        refused: S3Error | None = None
        record: Record | None = None
        try:
            route(request)
        except S3Error as error:
            refused = error
        fault = self.faults.take(request)
        self._at("head", fault, connection)
        if fault is not None and fault.kind == "reply" and fault.moment == "head":
            self._send(connection, request, self._wrong(fault), fault, close=True)
            return False
        try:
            if refused is not None:
                raise refused
            self._verify(request)
            record = self._recorded(request)
            self._permit(request)
        except S3Error as error:
            refused = error
        if record is None and refused is not None:
            self.rejected.append(refused.code)
        if request.headers.get("expect", "").lower() == "100-continue":
            if refused is not None:  # the body does not come, so what follows could not be told from it
                self._send(connection, request, self._error(refused, request), fault, close=True)
                return False
            connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault is not None and fault.moment == "request_body":
            connection.await_body(request, fault.after)
            self._at("request_body", fault, connection)
        response = self._answer(connection, request, refused, fault)
        if record is not None:
            record.status = response.status
        self._at("applied", fault, connection)
        close = request.headers.get("connection", "").lower() == "close"
        self._send(connection, request, response, fault, close=close)
        if fault is not None and fault.kind == "stale":
            if fault.stale == "next":
                connection.wait()
            if fault.stale != "close":
                connection.reset()
            return False
        return not close

    def _answer(
        self, connection: Connection, request: Request, refused: S3Error | None, fault: Fault | None
    ) -> Response:
        """Read the body and do what is asked."""
        kind = None if fault is None else fault.kind
        try:
            raw = connection.body(request)
            self._at("before_applied", fault, connection)
            if fault is not None and kind in {"reply", "error_200"} and not fault.applied:
                return self._wrong(fault)
            if refused is not None:
                raise refused
            receive(request, raw, fault.after if fault is not None and kind == "corrupt_request" else None)
            if fault is not None and not fault.ranges:
                request.headers.pop("range", None)
            response = self._verbs[request.operation](request)
        except S3Error as error:
            response = self._error(error, request)
        if fault is not None and kind in {"reply", "error_200"}:
            return self._wrong(fault)
        return response

    def _verify(self, request: Request) -> None:
        if not self._verifier.verify(request) and not self.anonymous:
            raise denied()

    def _recorded(self, request: Request) -> Record:
        actions = tuple(action for action, _ in needed(request))
        record = Record(
            actions[0],
            actions,
            request.operation,
            request.bucket,
            request.key,
            request.query,
            dict(request.headers),
            request.connection,
        )
        self.actions.append(record)
        return record

    def _permit(self, request: Request) -> None:
        operation = request.operation
        if operation == UNKNOWN:
            message = "A header or query you provided implies functionality that is not implemented"
            raise S3Error("NotImplemented", 501, message)
        if operation not in {"CreateBucket", "ListBuckets"}:
            self._objects.bucket(request.bucket)
        if operation == "DeleteObjects":
            return  # each key by itself
        for action, key in needed(request):
            if not self.permissions.permits(action, key):
                raise denied()

    def _at(self, moment: Moment, fault: Fault | None, connection: Connection) -> None:
        if fault is None or fault.moment != moment:
            return
        if fault.kind == "reset":
            connection.reset()
        if fault.kind == "stall":
            self._stopping.wait(fault.seconds)

    def _error(self, error: S3Error, request: Request) -> Response:
        if error.status == 304:
            return Response(304, error.headers)
        fields = error.fields or {"Resource": request.path}
        document = error_document(error.code, error.message, f"{next(self._ids):016X}", fields)
        return xml(document, error.status, error.headers)

    def _wrong(self, fault: Fault) -> Response:
        """The answer of a fault."""
        headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
        if fault.kind == "error_200":
            document = error_document(fault.code, "Failed on purpose.", f"{next(self._ids):016X}", {})
            return xml(" " * fault.padding + document)
        if not fault.xml:
            page = f"<html><body><h1>{fault.status} failed on purpose</h1></body></html>\n".encode()
            return Response(fault.status, {"Content-Type": "text/html", **headers}, page)
        document = error_document(fault.code, "Failed on purpose.", f"{next(self._ids):016X}", {})
        return xml(document, fault.status, headers)

    def _send(
        self,
        connection: Connection,
        request: Request,
        response: Response,
        fault: Fault | None,
        *,
        close: bool,
    ) -> None:
        if fault is not None:
            response = _spoilt(response, fault)
        bodiless = request.method == "HEAD" or response.status in {204, 304}
        identity = f"{next(self._ids):016X}"
        general = (
            f"Date: {formatdate(self.clock(), usegmt=True)}\r\nServer: AmazonS3\r\n"
            f"x-amz-request-id: {identity}\r\nx-amz-id-2: {identity}\r\n"
        )
        head = head_of(response, general, bodiless=bodiless, close=close)
        body = b"" if bodiless else response.body
        data = head + (framed(body) if response.chunked and not bodiless else body)
        if fault is None:
            connection.send(data)
            return
        if fault.kind == "raw" and fault.change is not None:
            for piece in fault.change(head, data[len(head) :]):
                connection.send(piece)
            raise ConnectionLostError("closed on purpose")
        start = len(head)
        if response.chunked and body:
            start += len(f"{len(body):x}\r\n")
        if fault.kind == "truncate" and not fault.chunked:
            connection.send(data[: start + min(fault.after, len(body))])
            raise ConnectionLostError("closed on purpose")
        cut = 0
        if fault.moment == "response_head":
            cut = min(fault.after, len(head))
        if fault.moment == "response_body":
            cut = start + min(fault.after, len(body))
        connection.send(data[:cut])
        self._at("response_head", fault, connection)
        self._at("response_body", fault, connection)
        connection.send(data[cut:])


def _spoilt(response: Response, fault: Fault) -> Response:
    """The answer with the fault of its body."""
    if fault.kind == "corrupt_response":
        return replace(response, body=corrupted(response.body, fault.after))
    if fault.kind == "truncate" and fault.chunked:
        return replace(response, body=response.body[: fault.after], chunked=True)
    if fault.kind == "truncate":
        return replace(response, chunked=False)
    if fault.kind == "alter" and fault.change is not None:
        altered: Response = fault.change(response)
        return altered
    return response


def _verbs(objects: Objects, uploads: Uploads) -> Mapping[str, Callable[[Request], Response]]:
    return {
        "AbortMultipartUpload": uploads.abort,
        "CompleteMultipartUpload": uploads.complete,
        "CopyObject": objects.copy_object,
        "CreateBucket": objects.create_bucket,
        "CreateMultipartUpload": uploads.create,
        "DeleteBucket": objects.delete_bucket,
        "DeleteObject": objects.delete_object,
        "DeleteObjects": objects.delete_objects,
        "GetBucketLocation": objects.get_bucket_location,
        "GetObject": objects.get_object,
        "GetObjectTagging": objects.get_object_tagging,
        "HeadBucket": objects.head_bucket,
        "HeadObject": objects.get_object,
        "ListBuckets": objects.list_buckets,
        "ListMultipartUploads": uploads.list_uploads,
        "ListObjectsV2": Listing(objects).list_objects,
        "ListParts": uploads.list_parts,
        "PutObject": objects.put_object,
        "UploadPart": uploads.upload_part,
        "UploadPartCopy": uploads.upload_part_copy,
    }
