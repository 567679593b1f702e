"""List 50,000 files over SSH."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import data, ssh
from benchmarks.harness import Comparison, Contender, Pass, Place, Workload, expect
from benchmarks.servers import OPENSSH

if TYPE_CHECKING:
    from storage_backend import RemoteStorage

LIST = "list()"
FIRST = "list(), the process's first use of the shell"
SCAN = "scan()"
SCAN_SFTP = 'scan(), shell="never"'
FIND = "ssh find -printf, unsorted"
RCLONE = "rclone lsf -R"
RCLONE_DETAIL = "rclone lsf -R with size and time"
FSSPEC = "fsspec find"
FSSPEC_DETAIL = "fsspec find(detail=True)"


def folder(place: Place) -> Path:
    return place.shared / f"listed-{place.scale.half_tree}"


def setup(place: Place) -> None:
    data.tree(folder(place), place.scale.half_tree)


def ours(place: Place) -> Pass:
    return probed(place).list


def our_first(place: Place) -> Pass:
    return ssh.ours(place, folder(place)).list


def probed(place: Place) -> RemoteStorage:
    """Our storage, which knows what the server's shell can do."""
    storage = ssh.ours(place, folder(place))
    _ = storage.capabilities
    return storage


def our_scan(place: Place) -> Pass:
    storage = probed(place)
    return lambda: [info.identifier for info in storage.scan()]


def our_sftp_scan(place: Place) -> Pass:
    storage = ssh.ours(place, folder(place), **ssh.SFTP_ONLY)
    return lambda: [info.identifier for info in storage.scan()]


def find(place: Place) -> Pass:
    return ssh.ssh(
        place, f"find {folder(place)} -type f -printf '%P\\0%s\\0%T@\\0'", after=f"> {place.scratch}/found"
    )


def rclone(place: Place) -> Pass:
    return ssh.rclone(place, "lsf", "-R", "--files-only", f"ssh:{folder(place)}")


def rclone_detail(place: Place) -> Pass:
    return ssh.rclone(place, "lsf", "-R", "--files-only", "--format", "pst", f"ssh:{folder(place)}")


def fsspec(place: Place) -> Pass:
    files = ssh.fsspec(place)
    return lambda: files.find(str(folder(place)))


def fsspec_detail(place: Place) -> Pass:
    files = ssh.fsspec(place)
    return lambda: [*files.find(str(folder(place)), detail=True)]


def check(place: Place, result: Any) -> None:
    if result is not None:  # a program's: its output is not kept
        expected = list(data.names(place.scale.half_tree))
        found = [name.removeprefix(f"{folder(place)}/") for name in result]
        expect(found == expected, "not the names in order")


WORKLOAD = Workload(
    title="List {half_tree:,} files over SSH",
    what=(
        "100 files to a directory; OpenSSH's sshd on this machine. Ours and fsspec return names in "
        "order. scan() also has size and time; fsspec requests them in any case. Programs are timed "
        "from start to end; libraries are connected before. Ours has also probed the shell before, "
        "except in one row; it does so once a process."
    ),
    contenders=(
        Contender(LIST, ours, module="paramiko"),
        Contender(FIRST, our_first, module="paramiko"),
        Contender(SCAN, our_scan, module="paramiko"),
        Contender(SCAN_SFTP, our_sftp_scan, module="paramiko"),
        Contender(FIND, find, program="ssh"),
        Contender(RCLONE, rclone, program="rclone"),
        Contender(RCLONE_DETAIL, rclone_detail, program="rclone"),
        Contender(FSSPEC, fsspec, module="fsspec"),
        Contender(FSSPEC_DETAIL, fsspec_detail, module="fsspec"),
    ),
    setup=setup,
    check=check,
    rounds=3,
    comparisons=(
        Comparison(LIST, RCLONE, 5.0),
        Comparison(LIST, FSSPEC, 5.0),
        Comparison(FIRST, FSSPEC),
        Comparison(SCAN, RCLONE_DETAIL, 5.0),
        Comparison(SCAN, FSSPEC_DETAIL, 5.0),
        Comparison(SCAN, FIND),
        Comparison(SCAN_SFTP, RCLONE_DETAIL),
        Comparison(SCAN_SFTP, FSSPEC_DETAIL),
    ),
    server=OPENSSH,
)
