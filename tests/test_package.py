"""What `import storage_backend` promises."""

import subprocess
import sys

import pytest

import storage_backend

pytestmark = pytest.mark.quick

CLIENTS = {
    "boto3",
    "botocore",
    "paramiko",
    "sqlalchemy",
    "psycopg",
    "diskcache",
    "rich",
    "click",
    "zstandard",
    "cryptography",
}


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout


def test_every_public_name_is_there() -> None:
    for name in storage_backend.__all__:
        assert getattr(storage_backend, name) is not None
    assert set(storage_backend.__all__) <= set(dir(storage_backend))


def test_importing_everything_imports_no_client() -> None:
    loaded = run(
        "import sys; from storage_backend import *; print(*{name.split('.')[0] for name in sys.modules})"
    )
    assert not CLIENTS & set(loaded.split())
    assert "storage_backend" in loaded.split()


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(storage_backend, "NoSuchStorage")


def test_version_is_the_distributions() -> None:
    from importlib.metadata import version

    assert version("storage-backend") == storage_backend.__version__
