"""Every code block of the README runs, and its table is what the code says."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.readme_table import README, rewritten

BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
PYTHON = [text for language, text in BLOCKS if language == "python"]
SHELL = [text for language, text in BLOCKS if language == "sh"]
EXAMPLES = sorted((README.parent / "examples").glob("*.py"))
# These two set up the machine they run on: .ci/run runs both, as printed.
SETUP = [text for text in SHELL if text.startswith("python -m pip install")]


@pytest.fixture
def s3() -> Iterator[dict[str, str]]:
    """The environment of a user who has a bucket."""
    pytest.importorskip("boto3")
    from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

    with S3Server() as server:
        server.create_bucket("my-bucket")
        yield {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": server.url,
            "AWS_CONFIG_FILE": os.devnull,
        }


@pytest.fixture
def nas(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The environment of a user who has an account on a server, and what its names in the README stand for."""
    from tests.ssh_servers import SSHPlace

    place: SSHPlace = request.getfixturevalue("openssh_place")
    ssh = tmp_path / "home" / ".ssh"
    ssh.mkdir(parents=True)
    shutil.copy(place.key_filename, ssh / "id_ed25519")
    shutil.copy(place.known_hosts, ssh / "known_hosts")
    names = {
        '["nas.lan", 22], ["nas.example.org", 2222]': f'["{place.host}", {place.port}], ["127.0.0.1", 9]',
        '"ana"': f'"{place.user}"',
        "~/papers": place.base,
    }
    return {"HOME": str(tmp_path / "home")}, names


@pytest.fixture
def ssh_home(tmp_path: Path) -> Iterator[Path]:
    """The home directory of a user whose ~/.ssh/config says how "nas.lan" is reached. Its server lets in whoever has the key."""
    pytest.importorskip("paramiko")
    from tests.ssh_servers import ParamikoSFTP

    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    server = ParamikoSFTP()
    try:
        shutil.copy(server.key_filename, home / ".ssh" / "key-of-ana")
        shutil.copy(server.known_hosts, home / ".ssh" / "known_hosts")
        (home / ".ssh" / "config").write_text(
            f"Host nas.lan\n  HostName {server.host}\n  Port {server.port}\n  IdentityFile ~/.ssh/key-of-ana\n"
            "Host nas.example.org\n  HostName 127.0.0.1\n"
        )
        yield home
    finally:
        server.stop()


def run(
    command: list[str], cwd: Path, extra: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HOME": str(cwd / "home"),
        **(extra or {}),
        "XDG_STATE_HOME": str(cwd / "state"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_readme_has_its_two_commands() -> None:
    assert len(SETUP) == 2
    assert "storage-backend migrate storage_backend sqlite:///archive.db" in SETUP[0]
    assert SETUP[1] == 'python -m pip install -e ".[test]" && python -m pytest\n'
    assert {language for language, _ in BLOCKS} == {"sh", "python"}


def test_every_command_runs_from_top_to_bottom(tmp_path: Path, s3: dict[str, str], ssh_home: Path) -> None:
    """As printed, in a clone, by a user who has nothing else: no settings, no cache, no state."""
    clone = tmp_path / "clone"
    shutil.copytree(
        README.parent / "storage_backend",
        clone / "storage_backend",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    pip, both, first = SETUP[0].partition("&&")
    assert "pip" in pip
    assert both
    text = "".join([first.lstrip(), *(text for text in SHELL if text not in SETUP)])
    assert text.count("\nstorage-backend ") > 15
    path = [str(Path(sys.executable).parent), os.defpath]
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", text],
        cwd=clone,
        env={**kept, **s3, "HOME": str(ssh_home), "PATH": os.pathsep.join(path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr  # with the commands, by -x
    assert (clone / "reports" / "2026.txt").read_text() == "All quiet.\n"
    assert done.stdout.splitlines()[-1].endswith("  2026.txt")
    assert "the same" in done.stdout.splitlines()


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_block_runs(number: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    text = PYTHON[number]
    extra = request.getfixturevalue("s3") if "my-bucket" in text else {}
    if "nas." in text:
        pytest.importorskip("paramiko")
        extra, names = request.getfixturevalue("nas")
        for name, meant in names.items():
            text = text.replace(name, meant)
    done = run([sys.executable, "-c", text], tmp_path, extra)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(path: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file.txt").write_text("content")
    done = run([sys.executable, str(path), "folder"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_table_is_what_the_code_says() -> None:
    assert rewritten(README.read_text()) == README.read_text(), "run python -m tests.readme_table"
