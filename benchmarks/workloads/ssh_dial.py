"""Reach a server whose first endpoint never answers."""

from __future__ import annotations

from typing import Any

from benchmarks import data, ssh
from benchmarks.harness import OURS, Comparison, Contender, Pass, Place, Workload, each, expect, peer
from benchmarks.servers import OPENSSH
from benchmarks.workloads import single

DEAD = f"{OURS}, first endpoint dead"
ALIVE = f"{OURS}, first endpoint alive"
PARAMIKO = "paramiko, first endpoint dead, 2 s for each"
PARAMIKO_ALIVE = "paramiko, first endpoint alive"
ASYNCSSH = "asyncssh, first endpoint alive"


def dead(place: Place) -> Pass:
    hole = ssh.BlackHole()
    return dialling(place, [[ssh.HOST, hole.port], [ssh.HOST, ssh.port(place)]], hole)


def alive(place: Place) -> Pass:
    return dialling(place, [[ssh.HOST, ssh.port(place)]], None)


def dialling(place: Place, endpoints: list[Any], kept: object) -> Pass:
    """A pass from nothing to the first object; *kept* lives as long."""
    for module in ("paramiko", "storage_backend.backends.remote"):
        peer(module)  # importing takes longer than dialling
    (name, *_) = single.identifiers(place)

    def run() -> bytes:
        _ = kept
        with ssh.ours(place, single.folder(place), endpoints=endpoints) as storage:
            return storage.read(name)

    return run


def paramiko(place: Place) -> Pass:
    hole = ssh.BlackHole()
    module = peer("paramiko")
    (path, *_) = single.paths(place)

    def run() -> bytes:
        for port in (hole.port, ssh.port(place)):
            try:
                client = ssh.paramiko(place, port=port, timeout=2.0)
            except (OSError, module.SSHException):
                continue
            return first(client, path)
        raise AssertionError("neither answers")

    return run


def paramiko_alive(place: Place) -> Pass:
    peer("paramiko")
    (path, *_) = single.paths(place)
    return each(lambda path: first(ssh.paramiko(place), path), [path])


def first(client: Any, path: str) -> bytes:
    with client, client.open_sftp() as sftp, sftp.open(path, "rb") as file:
        found: bytes = file.read()
    return found


def asyncssh(place: Place) -> Pass:
    peer("asyncssh")
    (path, *_) = single.paths(place)

    def run() -> bytes:
        client = ssh.AsyncSSH(place)

        async def read() -> bytes:
            async with client.sftp.open(path, "rb") as file:
                found: bytes = await file.read()
            client.connection.close()
            await client.connection.wait_closed()
            return found

        found: bytes = client.run(read())
        return found

    return run


def check(_place: Place, result: Any) -> None:
    expect(len(result) == data.SMALL, f"read {len(result)} bytes")


WORKLOAD = Workload(
    title="From nothing to the first 4 KiB over SSH",
    what=(
        "Connect, authenticate with an Ed25519 key, read one file and disconnect. OpenSSH's sshd on "
        "this machine. The first of two endpoints is a listener with a full queue, so packets to it "
        "are dropped. Ours has its default settings."
    ),
    contenders=(
        Contender(DEAD, dead, module="paramiko"),
        Contender(ALIVE, alive, module="paramiko"),
        Contender(PARAMIKO, paramiko, module="paramiko"),
        Contender(PARAMIKO_ALIVE, paramiko_alive, module="paramiko"),
        Contender(ASYNCSSH, asyncssh, module="asyncssh"),
    ),
    setup=single.setup,
    check=check,
    rounds=5,
    comparisons=(
        Comparison(DEAD, PARAMIKO),
        Comparison(ALIVE, PARAMIKO_ALIVE),
        Comparison(ALIVE, ASYNCSSH),
    ),
    limits={DEAD: 0.5},
    server=OPENSSH,
)
