"""The example of CONTRIBUTING.md is a backend: it passes the conformance suite, but for what it says that it lacks."""

import ast
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage_backend.testing import ConformanceSuite

ROOT = Path(__file__).parent.parent
BLOCKS: dict[str, str] = dict(
    re.findall(
        r"^```python\n# (\w+\.py)\n(.*?)^```$",
        (ROOT / "CONTRIBUTING.md").read_text(),
        re.DOTALL | re.MULTILINE,
    )
)
# Races of many threads and processes and thousands of objects: they take most of the time, and here they try SQLite alone.
LONG = "page or readers or threads or deleters or creators or child or side or many or others or lazily"


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is some: each statement of the example is flushed to the disk."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


def test_the_backend_has_at_most_50_lines() -> None:
    lines = [line for line in BLOCKS["rows.py"].splitlines() if line.strip()]
    assert 30 < len(lines) <= 50


def test_the_backend_passes_the_conformance_suite(folder: Path) -> None:
    for name, text in BLOCKS.items():
        (folder / name).write_text(text)
    options = ["-q", "-p", "no:cacheprovider", "--basetemp", str(folder / "temporary"), "-k", f"not ({LONG})"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_rows.py"],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTEST_ADDOPTS": "",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) > 120, done.stdout


def test_the_table_names_every_conformance_class() -> None:
    section = (
        (ROOT / "CONTRIBUTING.md").read_text().split("\n## The conformance classes")[1].split("\n## ")[0]
    )
    told = set()
    for row in re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE):
        path, _, first = row.replace("`", "").partition("::")
        told |= {(path, name) for name in first.split(", ")}
    bases = {"ConformanceSuite", "ObjectTopics", *(topic.__name__ for topic in ConformanceSuite.__bases__)}
    tests = ROOT / "tests"
    found = {
        (str(path.relative_to(tests)), node.name)
        for path in tests.rglob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
        and node.name.startswith("Test")
        and bases & {base.id for base in node.bases if isinstance(base, ast.Name)}
    }
    assert told == found
