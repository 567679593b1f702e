"""Imports point to a lower floor only."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

PACKAGE = Path(__file__).parent.parent / "storage_backend"
# The first prefix that fits gives the floor. Siblings on floor 3 do not import one another.
FLOORS = {
    "errors": 0,
    "identifiers": 1,
    "info": 1,
    "lineage": 0.5,
    "paths": 0.5,
    "secrets": 1,
    "url_escaping": 1,
    "last_seen": 1.5,
    "file_rights": 1.4,
    "files": 1.5,
    "destinations": 1.6,
    "owners": 1.2,
    "forks": 1,
    "threads": 1,
    "scanning": 1.5,
    "streams": 1.5,
    "counted": 1.5,
    "defensive": 1.7,
    "hooks": 1.8,
    "base": 2,
    "markers": 2.2,
    "wrappers.base": 2.5,
    "wrappers.blocks": 2.5,
    "wrappers.recoding": 2.6,
    "wrappers.sources": 2.5,
    "backends": 3,
    "wrappers": 3,
    "transfer": 3,
    "testing": 3,
    "stores": 4,
    "aio": 4,
    "location_parser": 1.5,
    "schemes": 4.5,
    "config": 5,
    "fsspec": 5,
    "cli": 6,
    "__main__": 7,
    "server": 6,
    "": 5.5,  # the package itself names what it exports
}


# They take backends, so their annotations name the class; nothing of it is there at run time.
ANNOTATED = {("counted", "base"), ("defensive", "base"), ("hooks", "base")}


def floor(module: str) -> float:
    return next(
        level
        for prefix, level in FLOORS.items()
        if module == prefix or module.startswith(f"{prefix}.") or not prefix
    )


def unit(module: str) -> str:
    """What may import itself freely: a module, or a package that is one thing."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] in {"backends", "wrappers"} else parts[0]


def imports(path: Path, module: str) -> list[str]:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [
                part
                for part in node.body
                if not isinstance(part, ast.ImportFrom)
                or (module, (part.module or "").removeprefix("storage_backend.")) not in ANNOTATED
            ]
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "storage_backend":
            base = (node.module or "").removeprefix("storage_backend").lstrip(".")
            found += [
                f"{base}.{alias.name}".strip(".")
                if (PACKAGE / base.replace(".", "/") / f"{alias.name}.py").exists() or not base
                else base
                for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            found += [
                a.name.removeprefix("storage_backend").lstrip(".")
                for a in node.names
                if a.name.startswith("storage_backend")
            ]
    return found


def test_imports_point_to_a_lower_floor() -> None:
    wrong = []
    seen = 0
    for path in PACKAGE.rglob("*.py"):
        module = (
            ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        )
        for target in imports(path, module):
            seen += 1
            if unit(target) != unit(module) and floor(target) >= floor(module):
                wrong.append(f"{module or 'storage_backend'} imports {target or 'storage_backend'}")
    assert not wrong
    assert seen > 10
