"""SFTP as a test wants it: a server in this process that says whatever it is told to, and otherwise the truth."""

from __future__ import annotations

import os
import socket
import stat
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import paramiko
from typing_extensions import override

from storage_backend.backends.remote.sftp_packets import (
    ATTRS,
    CLOSE,
    DATA,
    EOF,
    EXTENDED,
    FAILURE,
    FSTAT,
    FXF_APPEND,
    FXF_CREAT,
    FXF_EXCL,
    FXF_TRUNC,
    FXF_WRITE,
    HANDLE,
    LSTAT,
    MKDIR,
    NAME,
    NO_SUCH_FILE,
    OK,
    OPEN,
    OPENDIR,
    PERMISSION_DENIED,
    POSIX_RENAME,
    READ,
    READDIR,
    REALPATH,
    REMOVE,
    RENAME,
    RMDIR,
    SETSTAT,
    STAT,
    STATUS,
    UNSUPPORTED,
    VERSION,
    WRITE,
    Fields,
    text,
)

CONTENT = bytes(range(256)) * 16
DIRECTORY = stat.S_IFDIR | 0o755
FILE = stat.S_IFREG | 0o644

Answer = Callable[["Speaker", int, bytes], bytes | None]


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def packet(kind: int, request: int, body: bytes) -> bytes:
    return number(len(body) + 5) + bytes((kind,)) + number(request) + body


def status(request: int, code: int, words: bytes = b"") -> bytes:
    return packet(STATUS, request, number(code) + text(words) + text(b""))


def attributes(size: int = len(CONTENT), mode: int = FILE, modified: int = 1) -> bytes:
    return struct.pack(">IQIII", 1 | 4 | 8, size, mode, modified, modified)


def names(request: int, *found: tuple[bytes, bytes], count: int | None = None) -> bytes:
    entries = b"".join(text(name) + text(b"long") + facts for name, facts in found)
    return packet(NAME, request, number(len(found) if count is None else count) + entries)


class Speaker(paramiko.SubsystemHandler):  # type: ignore[misc]  # paramiko has no types
    """SFTP of a directory that holds the file "a"; what the test wants otherwise, a table of answers says."""

    extensions: tuple[bytes, ...] = (POSIX_RENAME,)

    def __init__(self, channel: Any, name: str, server: Any, answers: Mapping[int, Answer]) -> None:
        super().__init__(channel, name, server)
        self._answers = answers
        self._listed: set[bytes] = set()
        self.channel = channel

    @override
    def start_subsystem(self, name: str, transport: Any, channel: Any) -> None:
        with suppress(OSError, EOFError):
            self._exactly(int.from_bytes(self._exactly(4)))
            introduce = self._answers.get(VERSION)
            hello = number(3) + b"".join(text(name) + text(b"1") for name in self.extensions)
            said = (
                introduce(self, 0, b"") if introduce else number(len(hello) + 1) + bytes((VERSION,)) + hello
            )
            if said is None:
                self._wait()
                return
            channel.sendall(said)
            while True:
                body = self._exactly(int.from_bytes(self._exactly(4)))
                reply = self.reply(body[0], int.from_bytes(body[1:5]), body[5:])
                if reply is not None:
                    channel.sendall(reply)

    def reply(self, kind: int, request: int, body: bytes) -> bytes | None:
        """What is sent; None for nothing."""
        answer = self._answers.get(kind)
        return answer(self, request, body) if answer else self.honest(kind, request, body)

    def honest(self, kind: int, request: int, body: bytes) -> bytes:
        """What a server would say that has the file."""
        size = int.from_bytes(body[:4])
        subject, rest = body[4 : 4 + size], body[4 + size :]
        if kind == REALPATH:
            return names(request, (b"/base", attributes(mode=DIRECTORY)))
        if kind in {STAT, LSTAT}:
            if subject in {b"/", b"/base"}:
                return packet(ATTRS, request, attributes(mode=DIRECTORY))
            return (
                packet(ATTRS, request, attributes())
                if subject == b"/base/a"
                else status(request, NO_SUCH_FILE)
            )
        if kind == FSTAT:
            return packet(ATTRS, request, attributes())
        if kind in {OPEN, OPENDIR}:
            return packet(HANDLE, request, text(subject if len(subject) < 100 else sha256(subject).digest()))
        if kind == READDIR:
            if subject in self._listed:
                self._listed.discard(subject)
                return status(request, EOF)
            self._listed.add(subject)
            return names(request, (b"a", attributes()))
        if kind == READ:
            start, length = struct.unpack(">QI", rest)
            data = CONTENT[start : start + length]
            return packet(DATA, request, text(data)) if data else status(request, EOF)
        return status(request, OK)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.channel.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def _wait(self) -> None:
        while self.channel.recv(1 << 16):
            pass


class FolderSpeaker(Speaker):
    """SFTP of the directory *root* as "/"; what the test wants otherwise, a table of answers says."""

    def __init__(
        self, channel: Any, name: str, server: Any, answers: Mapping[int, Answer], root: Path
    ) -> None:
        super().__init__(channel, name, server, answers)
        self._root = os.fsencode(root)
        self._numbers = 0
        self._files: dict[bytes, int] = {}
        self._folders: dict[bytes, list[tuple[bytes, bytes]]] = {}

    @override
    def start_subsystem(self, name: str, transport: Any, channel: Any) -> None:
        try:
            super().start_subsystem(name, transport, channel)
        finally:
            for descriptor in self._files.values():
                os.close(descriptor)

    @override
    def honest(self, kind: int, request: int, body: bytes) -> bytes:
        try:
            return self._carried_out(kind, request, Fields(body))
        except FileNotFoundError:
            return status(request, NO_SUCH_FILE)
        except PermissionError:
            return status(request, PERMISSION_DENIED)
        except (OSError, KeyError, ValueError) as error:
            return status(request, FAILURE, str(error).encode())

    def _carried_out(self, kind: int, request: int, fields: Fields) -> bytes:
        subject = fields.string()
        at = self._at(subject)
        if kind == REALPATH:
            return names(request, (b"/" if subject == b"." else subject, attributes(mode=DIRECTORY)))
        if kind in {STAT, LSTAT}:
            return packet(ATTRS, request, told(at.stat() if kind == STAT else at.lstat()))
        if kind == FSTAT:
            return packet(ATTRS, request, told(os.fstat(self._files[subject])))
        if kind in {OPEN, OPENDIR}:
            self._numbers += 1
            handle = b"%d" % self._numbers
            if kind == OPEN:
                self._files[handle] = os.open(at, flags_of(fields.number()), 0o666)
            else:
                with os.scandir(os.fsencode(at)) as entries:
                    self._folders[handle] = [
                        (entry.name, told(entry.stat(follow_symlinks=False))) for entry in entries
                    ]
            return packet(HANDLE, request, text(handle))
        if kind == READDIR:
            found = self._folders[subject][:100]
            del self._folders[subject][:100]
            return names(request, *found) if found else status(request, EOF)
        if kind == READ:
            start, length = fields.long(), fields.number()
            data = os.pread(self._files[subject], min(length, 1 << 18), start)
            return packet(DATA, request, text(data)) if data else status(request, EOF)
        if kind == WRITE:
            start = fields.long()
            os.pwrite(self._files[subject], fields.string(), start)
        elif kind == CLOSE:
            if self._folders.pop(subject, None) is None:
                os.close(self._files.pop(subject))
        elif kind == SETSTAT:
            wanted = fields.attributes()
            if wanted.mode is not None:
                at.chmod(stat.S_IMODE(wanted.mode))
            if wanted.modified is not None:
                os.utime(at, (wanted.modified, wanted.modified))
        elif kind == MKDIR:
            at.mkdir()
        elif kind == RMDIR:
            at.rmdir()
        elif kind == REMOVE:
            at.unlink()
        elif kind == RENAME:
            target = self._at(fields.string())
            if os.path.lexists(target):
                return status(request, FAILURE)
            at.rename(target)
        elif kind == EXTENDED and subject == POSIX_RENAME and POSIX_RENAME in self.extensions:
            self._at(fields.string()).replace(self._at(fields.string()))
        else:
            return status(request, UNSUPPORTED)
        return status(request, OK)

    def _at(self, path: bytes) -> Path:
        return Path(os.fsdecode(self._root + b"/" + path.lstrip(b"/")))


class BareFolderSpeaker(FolderSpeaker):
    """The same without extensions: no request replaces a file."""

    extensions = ()


def told(facts: os.stat_result) -> bytes:
    """What a server tells of a file."""
    return attributes(facts.st_size, facts.st_mode, int(facts.st_mtime) & 0xFFFFFFFF)


def flags_of(wanted: int) -> int:
    """What OPEN asks for, for os.open."""
    pairs = (
        (FXF_APPEND, os.O_APPEND),
        (FXF_CREAT, os.O_CREAT),
        (FXF_TRUNC, os.O_TRUNC),
        (FXF_EXCL, os.O_EXCL),
    )
    access = os.O_RDWR if wanted & 3 == 3 else os.O_WRONLY if wanted & FXF_WRITE else os.O_RDONLY
    return access | os.O_CLOEXEC | sum(flag for bit, flag in pairs if wanted & bit)


class Welcome(paramiko.ServerInterface):  # type: ignore[misc]  # paramiko has no types
    """Lets everybody in, to SFTP alone."""

    @override
    def get_allowed_auths(self, username: str) -> str:
        return "password"

    @override
    def check_auth_password(self, username: str, password: str) -> int:
        return int(paramiko.AUTH_SUCCESSFUL)

    @override
    def check_channel_request(self, kind: str, chanid: int) -> int:
        return int(paramiko.OPEN_SUCCEEDED)


class Hostile:
    """An SSH server in this process, whose SFTP is a *speaker*, made with *arguments* for each session; *name* is what it calls itself."""

    def __init__(
        self, key: Path, speaker: Callable[..., Speaker], *arguments: Any, name: str = "paramiko"
    ) -> None:
        self._name = name
        self._key = paramiko.PKey.from_path(key)
        self._handler = (speaker, *arguments)
        self._transports: list[Any] = []
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            transport = paramiko.Transport(connection)
            transport.local_version = f"SSH-2.0-{self._name}"
            transport.add_server_key(self._key)
            transport.set_subsystem_handler("sftp", *self._handler)
            self._transports.append(transport)
            with suppress(paramiko.SSHException, EOFError):
                transport.start_server(event=threading.Event(), server=Welcome())

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        for transport in self._transports:
            transport.close()


def raw(reply: bytes | None) -> Answer:
    return lambda _speaker, _request, _body: reply


def replied(make: Callable[[int], bytes]) -> Answer:
    return lambda _speaker, request, _body: make(request)
