"""What a machine lacks is a skip that names it, or a failure where servers are required."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import without_servers
from tests.servers import ServerUnavailableError, program


def test_missing_program_says_what_installs_it(tmp_path: Path) -> None:
    (tmp_path / "no-such-program").write_text("which cannot be run")
    with pytest.raises(ServerUnavailableError, match=r"no-such-program is not installed: apt-get install it"):
        program("no-such-program", "apt-get install it", str(tmp_path))


@pytest.mark.parametrize(("required", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_test_without_its_program_is_skipped_unless_servers_are_required(
    monkeypatch: pytest.MonkeyPatch, required: str, outcome: type[Exception]
) -> None:
    monkeypatch.setenv("STORAGE_BACKEND_REQUIRE_SERVERS", required)
    running = without_servers()
    next(running)
    with pytest.raises(outcome, match="sshd is not installed"):
        running.throw(ServerUnavailableError("sshd is not installed: apt-get install openssh-server"))
