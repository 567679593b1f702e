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
EXAMPLES = sorted((README.parent / "examples").glob("*.py"))
# These two set up the machine they run on: .ci/run runs both, as printed.
SETUP = [text for _, text in BLOCKS if text.startswith("python -m pip install")]


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
        "nas.lan,nas.example.org:2222": f"{place.host}:{place.port},127.0.0.1:9",
        "nas.lan": f"{place.host}:{place.port}",
        "ana@": f"{place.user}@",
        '"ana"': f'"{place.user}"',
        "/~/papers": place.base,
        "~/papers": place.base,
    }
    return {"HOME": str(tmp_path / "home")}, names


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


@pytest.mark.parametrize("number", [index for index, block in enumerate(BLOCKS) if block[1] not in SETUP])
def test_block_runs(number: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    language, text = BLOCKS[number]
    (tmp_path / "report.pdf").write_bytes(b"%PDF")
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "2026.pdf").write_bytes(b"%PDF")
    extra = request.getfixturevalue("s3") if "my-bucket" in text else {}
    if "nas." in text:
        pytest.importorskip("paramiko")
        extra, names = request.getfixturevalue("nas")
        for name, meant in names.items():
            text = text.replace(name, meant)
    command = (
        [sys.executable, "-c", text] if language == "python" else ["bash", "-euo", "pipefail", "-c", text]
    )
    done = run(command, tmp_path, extra)
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
