"""An asyncssh server with a shell and SFTP at the whole file system: HOST PORT AUTHORIZED_KEYS HOST_KEY..."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import Any

import asyncssh


async def serve(host: str, port: str, authorized_keys: str, *host_keys: str) -> None:
    """Serve until killed."""
    server = await asyncssh.listen(
        host,
        int(port),
        server_host_keys=list(host_keys),
        authorized_client_keys=authorized_keys,
        process_factory=run,
        sftp_factory=True,
        encoding=None,
        line_editor=False,
        login_timeout=600,
        gss_host=None,
    )
    await server.wait_closed()


async def run(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Run a session's command by the shell, or the shell where there is none."""
    arguments = [] if process.command is None else ["-c", process.command]
    child = await asyncio.create_subprocess_exec(
        "/bin/sh",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    given = asyncio.create_task(copy(process.stdin, child.stdin))
    # Not by asyncssh's own redirection, which loses the end of a long output.
    await asyncio.gather(copy(child.stdout, process.stdout), copy(child.stderr, process.stderr))
    status = await child.wait()
    given.cancel()
    process.exit(status if status >= 0 else 128 - status)  # as a shell tells of a signal


async def copy(source: Any, target: Any) -> None:
    """All there is, at the pace of the slower."""
    with suppress(OSError, asyncssh.Error):  # one side has gone: the command meets a closed pipe, and ends
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    # The end of one of a session's two outputs would be the end of both (RFC 4254, 5.3): `exit` sends it.
    if isinstance(target, asyncio.StreamWriter):
        target.close()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
