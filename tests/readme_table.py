"""The README's table of backends, generated from the classes. `python -m tests.readme_table` writes it into the README."""

from __future__ import annotations

from pathlib import Path

from storage_backend import (
    Capability,
    DatabaseStorage,
    LocalStorage,
    MemoryStorage,
    S3Storage,
    StorageBackend,
)

README = Path(__file__).parent.parent / "README.md"
BEGIN = "<!-- table: made by `python -m tests.readme_table`, checked by the tests -->\n"
END = "<!-- end of table -->"
WORDS = {
    Capability.CREATE: "`create`",
    Capability.REPLACE: "`replace`",
    Capability.RANGES: "ranges",
    Capability.SERVER_COPY: "copies by itself",
    Capability.URL: "`get_url`",
    Capability.FLUSH: "`flush`",
    Capability.CHECKSUM: "digests by itself",
    Capability.DIRECTORIES: "has directories",
}


def backends() -> dict[str, StorageBackend]:
    return {
        "`LocalStorage`": LocalStorage("."),
        "`S3Storage`": S3Storage("unused"),
        "`DatabaseStorage` (SQLite)": DatabaseStorage("sqlite:///unused.db"),
        "`DatabaseStorage` (PostgreSQL)": DatabaseStorage("postgresql://nobody@127.0.0.1/unused"),
        "`MemoryStorage`": MemoryStorage(),
    }


# A server reached by SSH is asked what it can do, and here is none; tests/backends/test_remote_tiers.py holds OpenSSH to this.
OPENSSH = (
    Capability.CREATE
    | Capability.RANGES
    | Capability.SERVER_COPY
    | Capability.CHECKSUM
    | Capability.DIRECTORIES
    | Capability.FLUSH
)


def rows() -> list[tuple[str, Capability, bool]]:
    found = [(name, backend.capabilities, backend.keeps_modified) for name, backend in backends().items()]
    found.insert(2, ("`RemoteStorage` (OpenSSH with a shell; others may have less)", OPENSSH, True))
    return found


def table() -> str:
    lines = [f"| | {' | '.join(WORDS.values())} | keeps times |", "|---" * (len(WORDS) + 2) + "|"]
    for name, capabilities, keeps in rows():
        has = [capability in capabilities for capability in WORDS] + [keeps]
        lines.append(f"| {name} | {' | '.join('yes' if each else '' for each in has)} |")
    return "\n".join(lines) + "\n"


def rewritten(text: str) -> str:
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text()))
