"""Shared by the workloads of single operations over SSH: stat, read and write of 4 KiB by each contender."""

from __future__ import annotations

import atexit
import os
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks import data, ssh
from benchmarks.harness import OURS, Comparison, Contender, Pass, Place, Workload, each, expect
from benchmarks.servers import OPENSSH, PATIENCE
from benchmarks.workloads import single

CONTENT = data.content()
ASYNCSSH = "asyncssh"
FSSPEC = "fsspec"
PARAMIKO = "paramiko"
SSHFS = "sshfs"
SAID = (
    "One operation after the other; OpenSSH's sshd on this machine. Times are per operation; "
    "{objects:,} files in turn. asyncssh runs all operations in one coroutine. sshfs caches no "
    "metadata (attr_timeout=0, dir_cache=no); its own CPU time and memory are not included."
)

# Given the place, a function of a path on the server.
Operation = Callable[[Place], Callable[[str], Any]]


def ours_stat(place: Place) -> Callable[[str], int]:
    storage = ssh.ours(place, single.folder(place))
    return lambda name: storage.stat(name).size or 0


def ours_read(place: Place) -> Callable[[str], bytes]:
    return ssh.ours(place, single.folder(place)).read


def ours_write(place: Place) -> Callable[[str], Any]:
    storage = ssh.ours(place, place.scratch / "put")
    return lambda name: storage.write(name, CONTENT)


def fsspec_stat(place: Place) -> Callable[[str], int]:
    files = ssh.fsspec(place)
    return lambda path: files.info(path)["size"]


def fsspec_read(place: Place) -> Callable[[str], bytes]:
    read: Callable[[str], bytes] = ssh.fsspec(place).cat_file
    return read


def fsspec_write(place: Place) -> Callable[[str], Any]:
    files = ssh.fsspec(place)
    return lambda path: files.pipe_file(path, CONTENT)


def paramiko_stat(place: Place) -> Callable[[str], int]:
    client = ssh.paramiko(place).open_sftp()
    return lambda path: client.stat(path).st_size


def paramiko_read(place: Place) -> Callable[[str], bytes]:
    client = ssh.paramiko(place).open_sftp()

    def read(path: str) -> bytes:
        with client.open(path, "rb") as file:
            found: bytes = file.read()
        return found

    return read


def paramiko_write(place: Place) -> Callable[[str], Any]:
    client = ssh.paramiko(place).open_sftp()

    def write(path: str) -> None:
        with client.open(f"{path}.unfinished", "wb") as file:
            file.write(CONTENT)
        client.posix_rename(f"{path}.unfinished", path)

    return write


def asyncssh_stat(client: Any) -> Callable[[str], Awaitable[int]]:
    async def stat(path: str) -> int:
        size: int = (await client.stat(path)).size
        return size

    return stat


def asyncssh_read(client: Any) -> Callable[[str], Awaitable[bytes]]:
    async def read(path: str) -> bytes:
        async with client.open(path, "rb") as file:
            found: bytes = await file.read()
        return found

    return read


def asyncssh_write(client: Any) -> Callable[[str], Awaitable[None]]:
    async def write(path: str) -> None:
        async with client.open(f"{path}.unfinished", "wb") as file:
            await file.write(CONTENT)
        await client.posix_rename(f"{path}.unfinished", path)

    return write


def mounted_stat(path: str) -> int:
    return os.stat(path).st_size


def mounted_read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def mounted_write(path: str) -> None:
    with open(f"{path}.unfinished", "wb") as file:
        file.write(CONTENT)
    os.replace(f"{path}.unfinished", path)


def mount(place: Place, folder: Path) -> Path:
    """That folder of the server as sshfs shows it, until the process ends."""
    point = place.root / f"mounted-{os.getpid()}"
    point.mkdir()
    command, *options = ssh.openssh(place, "sshfs")
    process = subprocess.Popen(
        [
            *(command, "-f", ssh.remote(folder), str(point)),
            *("-o", "attr_timeout=0,entry_timeout=0,negative_timeout=0,dir_cache=no"),
            *(word for word in options if word not in {"-F", "none"}),
        ],
        stdin=subprocess.DEVNULL,
    )

    def unmount() -> None:
        subprocess.run(["fusermount3", "-u", str(point)], check=True)  # noqa: S607 - sshfs's own
        process.wait()
        point.rmdir()

    atexit.register(unmount)
    deadline = time.monotonic() + PATIENCE
    while not os.path.ismount(point):
        expect(process.poll() is None and time.monotonic() < deadline, "sshfs does not mount")
        time.sleep(0.01)
    return point


def written(place: Place) -> list[str]:
    """Names that are written to: the first pass, which does not count, makes them."""
    return [f"{index:06}.bin" for index in range(place.scale.objects)]


def check_stat(_place: Place, result: Any) -> None:
    expect(result == data.SMALL, f"{result} is not the size")


def check_read(_place: Place, result: Any) -> None:
    expect(len(result) == data.SMALL, f"read {len(result)} bytes")


def check_write(place: Place, _result: Any) -> None:
    total = place.scale.objects
    expect(data.contents(place.scratch / "put") == (total, total * data.SMALL), "not all is there")


_OURS = {"stat": ours_stat, "read": ours_read, "write": ours_write}
_ASYNCSSH: dict[str, Callable[[Any], Callable[[str], Awaitable[Any]]]] = {
    "stat": asyncssh_stat,
    "read": asyncssh_read,
    "write": asyncssh_write,
}
_OTHERS: tuple[tuple[str, dict[str, Operation]], ...] = (
    (FSSPEC, {"stat": fsspec_stat, "read": fsspec_read, "write": fsspec_write}),
    (PARAMIKO, {"stat": paramiko_stat, "read": paramiko_read, "write": paramiko_write}),
)
_MOUNTED: dict[str, Callable[[str], Any]] = {
    "stat": mounted_stat,
    "read": mounted_read,
    "write": mounted_write,
}
_CHECKS = {"stat": check_stat, "read": check_read, "write": check_write}


def workload(kind: str, title: str, what: str, targets: dict[str, float]) -> Workload:
    """The workload of "stat", "read" or "write"; *targets* are those of ours against some of the others."""

    def folder(place: Place) -> Path:
        if kind != "write":
            return single.folder(place)
        put = place.scratch / "put"
        put.mkdir(exist_ok=True)
        return put

    def names(place: Place) -> list[str]:
        return written(place) if kind == "write" else single.identifiers(place)

    def beneath(root: Path, names: Iterable[str]) -> list[str]:
        return [f"{root}/{name}" for name in names]

    def our_pass(place: Place) -> Pass:
        return each(_OURS[kind](place), names(place))

    def asyncssh_pass(place: Place) -> Pass:
        client = ssh.AsyncSSH(place)
        operation, paths = _ASYNCSSH[kind](client.sftp), beneath(folder(place), names(place))

        async def all_of_them() -> Any:
            result = None
            for path in paths:
                result = await operation(path)
            return result

        return lambda: client.run(all_of_them())

    def other_pass(operation: Operation) -> Callable[[Place], Pass]:
        return lambda place: each(operation(place), beneath(folder(place), names(place)))

    def mounted_pass(place: Place) -> Pass:
        return each(_MOUNTED[kind], beneath(mount(place, folder(place)), names(place)))

    contenders = (
        Contender(OURS, our_pass, module="paramiko"),
        Contender(ASYNCSSH, asyncssh_pass, module="asyncssh"),
        *(Contender(name, other_pass(ways[kind]), module=name) for name, ways in _OTHERS),
        Contender(SSHFS, mounted_pass, program="sshfs", device="/dev/fuse"),
    )
    return Workload(
        title=title,
        what=what,
        contenders=contenders,
        setup=single.setup,
        check=_CHECKS[kind],
        operations=single.operations,
        loop=True,
        rounds=5,
        comparisons=tuple(
            Comparison(OURS, name, targets.get(name)) for name in (ASYNCSSH, FSSPEC, PARAMIKO, SSHFS)
        ),
        server=OPENSSH,
    )
