"""Move a folder into SQLite and back, and show that nothing was lost on the way."""

import sys
import tempfile
from pathlib import Path

from storage_backend import DatabaseStorage, LocalStorage, migrate, verify


def main(folder: str) -> None:
    """Migrate there and back, and compare."""
    with tempfile.TemporaryDirectory() as scratch:
        source = LocalStorage(folder, create_if_missing=False)
        archive = DatabaseStorage(f"sqlite:///{scratch}/archive.db")
        copy = LocalStorage(Path(scratch) / "copy")
        for step in (
            migrate(source, archive, journal=f"{scratch}/out.journal"),
            migrate(archive, copy, journal=f"{scratch}/back.journal"),
            verify(source, copy),
        ):
            step.raise_for_failures()
            print(f"{step.verb}: {step.verified:,} objects verified, {step.bytes:,} bytes, ok={step.ok}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".")
