"""A bare SFTP server on paramiko's public server classes, without extensions and commands: HOST PORT ROOT AUTHORIZED_KEYS HOST_KEY...

In a process of its own: OpenSSL's locks that its threads hold while a test forks would be held in the child for ever.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import paramiko
from paramiko.common import (
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED,
    OPEN_SUCCEEDED,
)
from paramiko.sftp import CMD_INIT, CMD_VERSION, SFTP_FAILURE, SFTP_OK
from typing_extensions import override


def serve(host: str, port: str, root: str, authorized_keys: str, *host_keys: str) -> None:
    """Serve the directory *root* as "/", each connection by a thread, until killed."""
    keys = [paramiko.PKey.from_path(key) for key in host_keys]
    lines = (line.split() for line in Path(authorized_keys).read_text().splitlines())
    authorized = frozenset(" ".join(words[:2]) for words in lines)
    listener = socket.create_server((host, int(port)), backlog=128)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport = paramiko.Transport(connection)
        for key in keys:
            transport.add_server_key(key)
        transport.set_subsystem_handler("sftp", BareSFTPServer, Directory, Path(root))
        # An event to set, or the thread would not go on before the client has spoken.
        with suppress(paramiko.SSHException, EOFError):
            transport.start_server(event=threading.Event(), server=Session(authorized))


class Session(paramiko.ServerInterface):  # type: ignore[misc]  # paramiko has no types
    """Whom a connection belongs to, and what it may ask for: the SFTP subsystem."""

    def __init__(self, authorized: frozenset[str]) -> None:
        self._authorized = authorized

    @override
    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    @override
    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        found = f"{key.get_name()} {key.get_base64()}" in self._authorized
        return int(AUTH_SUCCESSFUL if found else AUTH_FAILED)

    @override
    def check_channel_request(self, kind: str, chanid: int) -> int:
        return int(OPEN_SUCCEEDED if kind == "session" else OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED)


class BareSFTPServer(paramiko.SFTPServer):  # type: ignore[misc]  # paramiko has no types
    """paramiko's without `check-file`, the only extension that its version packet names."""

    @override
    def _send_server_version(self) -> int:
        kind, data = self._read_packet()
        if kind != CMD_INIT:
            raise paramiko.SFTPError("the first packet is not INIT")
        version = paramiko.Message()
        version.add_int(3)
        self._send_packet(CMD_VERSION, version)
        return int.from_bytes(data[:4], "big")


class Handle(paramiko.SFTPHandle):  # type: ignore[misc]  # paramiko has no types
    """An open file, by positions of its own: paramiko's keeps one position for reading and writing."""

    def __init__(self, descriptor: int, flags: int) -> None:
        super().__init__(flags)
        self._descriptor = descriptor

    @override
    def close(self) -> None:
        os.close(self._descriptor)

    @override
    def read(self, offset: int, length: int) -> bytes | int:
        try:
            return os.pread(self._descriptor, min(length, 1 << 18), offset)
        except OSError as error:
            return _code(error)

    @override
    def write(self, offset: int, data: bytes) -> int:
        def whole() -> None:
            done = 0
            while done < len(data):
                done += os.pwrite(self._descriptor, data[done:], offset + done)

        return _status(whole)

    @override
    def stat(self) -> paramiko.SFTPAttributes | int:
        return _attributes(lambda: os.fstat(self._descriptor))

    @override
    def chattr(self, attr: paramiko.SFTPAttributes) -> int:
        return _status(lambda: _set(self._descriptor, attr))


class Directory(paramiko.SFTPServerInterface):  # type: ignore[misc]  # paramiko has no types
    """Version 3 over a directory: `rename` refuses a name that is taken (draft-ietf-secsh-filexfer-02, 6.5).

    paramiko answers `posix-rename@openssh.com` by `posix_rename`, which is unsupported unless overridden.
    """

    _renaming = threading.Lock()

    def __init__(self, server: paramiko.ServerInterface, root: Path) -> None:
        super().__init__(server)
        self._root = root

    @override
    def list_folder(self, path: str) -> list[paramiko.SFTPAttributes] | int:
        found = []
        try:
            with os.scandir(self._real(path)) as entries:
                for entry in entries:
                    # As bytes, since paramiko encodes a text strictly: one odd name would fail the whole listing.
                    name = os.fsencode(entry.name)
                    with suppress(FileNotFoundError):  # it is gone by now
                        found.append(
                            paramiko.SFTPAttributes.from_stat(entry.stat(follow_symlinks=False), name)
                        )
        except OSError as error:
            return _code(error)
        return found

    @override
    def stat(self, path: str) -> paramiko.SFTPAttributes | int:
        return _attributes(lambda: self._real(path).stat())

    @override
    def lstat(self, path: str) -> paramiko.SFTPAttributes | int:
        return _attributes(lambda: self._real(path).lstat())

    @override
    def open(self, path: str, flags: int, attr: paramiko.SFTPAttributes) -> Handle | int:
        mode = 0o666 if attr.st_mode is None else stat.S_IMODE(attr.st_mode)
        try:
            descriptor = os.open(self._real(path), flags | os.O_CLOEXEC, mode)
        except OSError as error:
            return _code(error)
        return Handle(descriptor, flags)

    @override
    def remove(self, path: str) -> int:
        return _status(lambda: self._real(path).unlink())

    @override
    def rename(self, oldpath: str, newpath: str) -> int:
        with self._renaming:
            if os.path.lexists(self._real(newpath)):
                return int(SFTP_FAILURE)
            return _status(lambda: self._real(oldpath).rename(self._real(newpath)))

    @override
    def mkdir(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        mode = 0o777 if attr.st_mode is None else stat.S_IMODE(attr.st_mode)
        return _status(lambda: self._real(path).mkdir(mode))

    @override
    def rmdir(self, path: str) -> int:
        return _status(lambda: self._real(path).rmdir())

    @override
    def chattr(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        return _status(lambda: _set(self._real(path), attr))

    @override
    def readlink(self, path: str) -> bytes | int:
        try:
            return os.fsencode(self._real(path).readlink())
        except OSError as error:
            return _code(error)

    @override
    def symlink(self, target_path: str, path: str) -> int:
        return _status(lambda: self._real(path).symlink_to(target_path))

    def _real(self, path: str) -> Path:
        return Path(f"{self._root}{self.canonicalize(path)}")


def _set(file: Path | int, attr: paramiko.SFTPAttributes) -> None:
    """Set what was sent. paramiko's own helper empties a file whose size it sets."""
    if attr.st_size is not None:
        os.truncate(file, attr.st_size)
    if attr.st_uid is not None:
        os.chown(file, attr.st_uid, attr.st_gid)
    if attr.st_mode is not None:
        os.chmod(file, stat.S_IMODE(attr.st_mode))  # noqa: PTH101 - a descriptor is no path
    if attr.st_atime is not None:
        os.utime(file, (attr.st_atime, attr.st_mtime))


def _attributes(look: Callable[[], os.stat_result]) -> Any:
    try:
        return paramiko.SFTPAttributes.from_stat(look())
    except OSError as error:
        return _code(error)


def _status(act: Callable[[], object]) -> int:
    try:
        act()
    except OSError as error:
        return _code(error)
    return int(SFTP_OK)


def _code(error: OSError) -> int:
    return int(paramiko.SFTPServer.convert_errno(error.errno))


if __name__ == "__main__":
    serve(*sys.argv[1:])
