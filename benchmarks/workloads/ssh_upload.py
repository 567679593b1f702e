"""Upload one large file over SSH."""

from __future__ import annotations

import shlex
from pathlib import Path

from benchmarks import ssh
from benchmarks.harness import MEBIBYTE, Comparison, Pass, Place, Workload
from benchmarks.servers import OPENSSH
from benchmarks.workloads.ssh_download import check, contender, doubled, setup

LARGE = "upload()"
CAT = "ssh cat"
CAT_GCM = f"ssh cat, {ssh.CIPHER}"
SCP = "scp"
RSYNC = "rsync -W"
SFTP = "sftp put"
RCLONE = "rclone copyto"
ASYNCSSH = "asyncssh put"
PARAMIKO = "paramiko put"
FSSPEC = "fsspec put_file"


def ours(place: Place, source: Path, copy: Path) -> Pass:
    storage = ssh.ours(place, copy.parent)
    return lambda: storage.upload(source, copy.name)


def cat(place: Place, source: Path, copy: Path) -> Pass:
    return ssh.ssh(place, f"cat > {shlex.quote(str(copy))}", after=f"< {shlex.quote(str(source))}")


def cat_gcm(place: Place, source: Path, copy: Path) -> Pass:
    return ssh.ssh(
        place, f"cat > {shlex.quote(str(copy))}", "-c", ssh.CIPHER, after=f"< {shlex.quote(str(source))}"
    )


def scp(place: Place, source: Path, copy: Path) -> Pass:
    return ssh.scp(place, str(source), ssh.remote(copy))


def rsync(place: Place, source: Path, copy: Path) -> Pass:
    return ssh.rsync(place, str(source), ssh.remote(copy))


def sftp(place: Place, source: Path, copy: Path) -> Pass:
    return ssh.sftp(place, f'put "{source}" "{copy}"')


def rclone(place: Place, source: Path, copy: Path) -> Pass:
    return ssh.rclone(place, "copyto", str(source), f"ssh:{copy}")


def asyncssh(place: Place, source: Path, copy: Path) -> Pass:
    client = ssh.AsyncSSH(place)
    return lambda: client.run(client.sftp.put(str(source), str(copy)))


def paramiko(place: Place, source: Path, copy: Path) -> Pass:
    client = ssh.paramiko(place).open_sftp()
    return lambda: client.put(str(source), str(copy))


def fsspec(place: Place, source: Path, copy: Path) -> Pass:
    files = ssh.fsspec(place)
    return lambda: files.put_file(str(source), str(copy))


WORKLOAD = Workload(
    title="Upload a large file over SSH",
    what=(
        "{double_large}; OpenSSH's sshd on this machine. Ours, rsync and rclone write to a temporary "
        "name and rename. Programs are timed from start to end, with their connection; libraries are "
        "connected before. rclone compares the MD5 of both files afterwards. ssh has its default "
        "cipher, and the default cipher of ours. smart_open is left out: it took more than four "
        "minutes."
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
    ),
    setup=setup(doubled),
    check=check(doubled),
    rounds=3,
    comparisons=(
        Comparison(LARGE, CAT, 0.45),
        Comparison(LARGE, RCLONE, 1.0),
        *(Comparison(LARGE, other) for other in (CAT_GCM, SCP, RSYNC, SFTP, ASYNCSSH, PARAMIKO, FSSPEC)),
    ),
    growth={LARGE: 32 * MEBIBYTE},
    server=OPENSSH,
)
