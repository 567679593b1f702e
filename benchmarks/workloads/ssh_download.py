"""Download one large file over SSH."""

from __future__ import annotations

import filecmp
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import data, ssh
from benchmarks.harness import MEBIBYTE, Comparison, Contender, Pass, Place, Scale, Workload, expect
from benchmarks.servers import OPENSSH, OPENSSH_20_MS

LARGE = "download()"
CAT = "ssh cat"
CAT_GCM = f"ssh cat, {ssh.CIPHER}"
SCP = "scp"
RSYNC = "rsync -W"
SFTP = "sftp get"
RCLONE = "rclone copyto"
ASYNCSSH = "asyncssh get"
PARAMIKO = "paramiko get"
FSSPEC = "fsspec get_file"
SMART_OPEN = "smart_open, copyfileobj"

# Given the place, the source and the copy.
Way = Callable[[Place, Path, Path], Pass]


def ours(place: Place, source: Path, copy: Path) -> Pass:
    storage = ssh.ours(place, source.parent)
    return lambda: storage.download(source.name, copy)


def cat(place: Place, source: Path, copy: Path) -> Pass:
    return ssh.ssh(place, f"cat {shlex.quote(str(source))}", after=f"> {shlex.quote(str(copy))}")


def cat_gcm(place: Place, source: Path, copy: Path) -> Pass:
    return ssh.ssh(
        place, f"cat {shlex.quote(str(source))}", "-c", ssh.CIPHER, after=f"> {shlex.quote(str(copy))}"
    )


def scp(place: Place, source: Path, copy: Path) -> Pass:
    return ssh.scp(place, ssh.remote(source), str(copy))


def rsync(place: Place, source: Path, copy: Path) -> Pass:
    return ssh.rsync(place, ssh.remote(source), str(copy))


def sftp(place: Place, source: Path, copy: Path) -> Pass:
    return ssh.sftp(place, f'get "{source}" "{copy}"')


def rclone(place: Place, source: Path, copy: Path) -> Pass:
    return ssh.rclone(place, "copyto", f"ssh:{source}", str(copy))


def asyncssh(place: Place, source: Path, copy: Path) -> Pass:
    client = ssh.AsyncSSH(place)
    return lambda: client.run(client.sftp.get(str(source), str(copy)))


def paramiko(place: Place, source: Path, copy: Path) -> Pass:
    client = ssh.paramiko(place).open_sftp()
    return lambda: client.get(str(source), str(copy))


def fsspec(place: Place, source: Path, copy: Path) -> Pass:
    files = ssh.fsspec(place)
    return lambda: files.get_file(str(source), str(copy))


def smart_open(place: Place, source: Path, copy: Path) -> Pass:
    ssh.smart_open(place, source, "rb").close()

    def run() -> None:
        with ssh.smart_open(place, source, "rb") as reader, open(copy, "wb") as writer:
            shutil.copyfileobj(reader, writer, MEBIBYTE)

    return run


def large(place: Place, size: Callable[[Scale], int]) -> Path:
    """The file that is copied."""
    return place.shared / f"large-{size(place.scale)}.bin"


def contender(
    name: str, way: Way, size: Callable[[Scale], int], module: str | None = None, program: str | None = None
) -> Contender:
    """The contender that copies a file of that size."""

    def prepare(place: Place) -> Pass:
        return way(place, large(place, size), place.scratch / "copy.bin")

    return Contender(name, prepare, module=module, program=program)


def setup(size: Callable[[Scale], int]) -> Callable[[Place], None]:
    """What makes that file."""

    def make(place: Place) -> None:
        data.large(large(place, size), size(place.scale))

    return make


def check(size: Callable[[Scale], int]) -> Callable[[Place, Any], None]:
    """What compares both files."""

    def compare(place: Place, _result: Any) -> None:
        same = filecmp.cmp(large(place, size), place.scratch / "copy.bin", shallow=False)
        expect(same, "the copy holds other bytes")

    return compare


def doubled(scale: Scale) -> int:
    return scale.double_large


def halved(scale: Scale) -> int:
    return scale.half_large


def at_20_ms(way: ModuleType, verb: str) -> Workload:
    """The workload of half the size on a slow link. *way* is `ssh_download` or `ssh_upload`, with the contenders."""
    return Workload(
        title=f"{verb} a large file over SSH at 20 ms",
        what=f"{{half_large}}; as `ssh-{verb.lower()}`, with a relay that adds 20 ms to each round trip. The relay "
        "terminates TCP on both sides, so TCP's slow start is not delayed: only SSH waits. Programs "
        "connect within their time, in about seven round trips.",
        contenders=(
            contender(way.LARGE, way.ours, halved, module="paramiko"),
            contender(way.CAT, way.cat, halved, program="ssh"),
            contender(way.SCP, way.scp, halved, program="scp"),
            contender(way.RSYNC, way.rsync, halved, program="rsync"),
            contender(way.RCLONE, way.rclone, halved, program="rclone"),
            contender(way.ASYNCSSH, way.asyncssh, halved, module="asyncssh"),
            contender(way.FSSPEC, way.fsspec, halved, module="fsspec"),
        ),
        setup=setup(halved),
        check=check(halved),
        rounds=3,
        comparisons=(
            Comparison(way.LARGE, way.RSYNC, 0.9),
            Comparison(way.LARGE, way.SCP, 0.9),
            Comparison(way.LARGE, way.FSSPEC, 1.5),
            *(Comparison(way.LARGE, other) for other in (way.CAT, way.RCLONE, way.ASYNCSSH)),
        ),
        server=OPENSSH_20_MS,
    )


WORKLOAD = Workload(
    title="Download a large file over SSH",
    what=(
        "{double_large} into a file, from OpenSSH's sshd on this machine. Files of ours, rsync and "
        "rclone appear whole or not at all. Programs are timed from start to end, with their "
        "connection; libraries are connected before. ssh has its default cipher, and the default "
        "cipher of ours."
    ),
    contenders=(
        contender(LARGE, ours, doubled, module="paramiko"),
        contender(CAT, cat, doubled, program="ssh"),
        contender(CAT_GCM, cat_gcm, doubled, program="ssh"),
        contender(SCP, scp, doubled, program="scp"),
        contender(RSYNC, rsync, doubled, program="rsync"),
        contender(SFTP, sftp, doubled, program="sftp"),
        contender(RCLONE, rclone, doubled, program="rclone"),
        contender(ASYNCSSH, asyncssh, doubled, module="asyncssh"),
        contender(PARAMIKO, paramiko, doubled, module="paramiko"),
        contender(FSSPEC, fsspec, doubled, module="fsspec"),
        contender(SMART_OPEN, smart_open, doubled, module="smart_open"),
    ),
    setup=setup(doubled),
    check=check(doubled),
    rounds=3,
    comparisons=(
        Comparison(LARGE, CAT, 0.45),
        Comparison(LARGE, RCLONE, 1.2),
        Comparison(LARGE, PARAMIKO, 2.5),
        *(Comparison(LARGE, other) for other in (CAT_GCM, SCP, RSYNC, SFTP, ASYNCSSH, FSSPEC, SMART_OPEN)),
    ),
    growth={LARGE: 32 * MEBIBYTE},
    server=OPENSSH,
)
