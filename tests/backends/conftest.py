"""Fixtures of several backends' tests. Like the one above, it imports nothing beyond pytest at the top."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.ssh_servers import SSHPlace


@pytest.fixture
def lying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], SSHPlace]]:
    """`lying(tool, script)`: a place where *tool* does *script*, but honestly while the shell is probed."""
    from tests.conftest import unavailable
    from tests.servers import ServerUnavailableError
    from tests.ssh_servers import OpenSSH, shell_script

    with ExitStack() as stack:

        def start(tool: str, script: str) -> SSHPlace:
            folder = tmp_path_factory.mktemp("tools")
            real = shutil.which(tool)
            program = folder / tool
            program.write_text(
                f'#!/bin/sh\ncase "$PWD$*" in *.~sb-probe-*) exec {real} "$@";; esac\n{script.format(real=real)}\n'
            )
            program.chmod(0o755)
            wrapper = shell_script(folder, "dash")
            wrapper.write_text(
                wrapper.read_text().replace("exec dash", f"PATH={folder}:$PATH; export PATH; exec dash")
            )
            try:
                server = OpenSSH(command_wrapper=wrapper)
            except ServerUnavailableError as error:
                unavailable(str(error))
            stack.callback(server.stop)
            return stack.enter_context(server.place())

        yield start
