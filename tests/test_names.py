"""A class name means one thing in the whole package; no module is long, and none keeps state at its top level."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

PACKAGE = Path(__file__).parent.parent / "storage_backend"
MOST_LINES = 500

MUTATING = {
    *(
        "add",
        "append",
        "appendleft",
        "clear",
        "discard",
        "extend",
        "insert",
        "pop",
        "popitem",
        "popleft",
        "remove",
    ),
    *("setdefault", "update", "put", "acquire"),
}
STATEFUL = {
    *(
        "set",
        "dict",
        "list",
        "bytearray",
        "count",
        "cycle",
        "deque",
        "defaultdict",
        "Counter",
        "OrderedDict",
        "local",
    ),
    *("Lock", "RLock", "Condition", "Event", "Semaphore", "BoundedSemaphore", "SimpleQueue", "Queue"),
    *("WeakSet", "WeakKeyDictionary", "WeakValueDictionary", "Memory", "ContextVar"),
}
"""What only makes sense at the top of a module if it changes there."""


def modules() -> Iterator[tuple[str, ast.Module, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        yield str(path.relative_to(PACKAGE)), ast.parse(text), text


def test_a_class_name_stands_once() -> None:
    homes = defaultdict(list)
    for module, tree, _ in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                homes[node.name.lstrip("_")].append(module)
    assert len(homes) > 300
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


def test_no_module_is_long() -> None:
    lengths = {module: text.count("\n") for module, _, text in modules()}
    assert {m: n for m, n in lengths.items() if n > MOST_LINES} == {}


def test_no_module_keeps_state() -> None:
    found = {f"{module}: {name}" for module, tree, _ in modules() for name in state_of(tree)}
    assert found == set()


@pytest.mark.parametrize(
    "text",
    [
        "_told = {}\ndef f(x):\n    _told[x] = 1",
        "_told: dict[int, int] = {}\ndef f(x):\n    _told.setdefault(x, 1)",
        "seen = 0\ndef f():\n    global seen\n    seen += 1",
        "_lock = threading.Lock()",
        "_numbers = itertools.count()",
        "class A:\n    made = []\n    def f(self):\n        A.made.append(self)",
    ],
)
def test_state_is_found(text: str) -> None:
    assert len(state_of(ast.parse(text))) == 1


def test_constants_are_no_state() -> None:
    text = "_KINDS = {1: 'a'}\n_CODE = re.compile('x')\ndef f(x):\n    found = {}\n    found[x] = _KINDS[x]\n"
    assert state_of(ast.parse(text)) == set()


def state_of(tree: ast.Module) -> set[str]:
    """The names at the top of a module, or of its classes, that its functions change or that are there to be changed."""
    values: dict[str, ast.expr] = {}
    owners: list[ast.Module | ast.ClassDef] = [tree]
    for owner in owners + [node for node in tree.body if isinstance(node, ast.ClassDef)]:
        prefix = f"{owner.name}." if isinstance(owner, ast.ClassDef) else ""
        for part in owner.body:
            targets = part.targets if isinstance(part, ast.Assign) else [getattr(part, "target", None)]
            if isinstance(part, ast.Assign | ast.AnnAssign) and part.value is not None:
                values |= {prefix + each.id: part.value for each in targets if isinstance(each, ast.Name)}
    found = {name for name, value in values.items() if "." not in name and _called(value) in STATEFUL}
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Global):
                found |= set(node.names)
            elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
                found |= {ast.unparse(node.value)} & set(values)
            elif (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in MUTATING
            ):
                found |= {ast.unparse(node.func.value)} & set(values)
    return found


def _called(value: ast.expr) -> str:
    return ast.unparse(value.func).rpartition(".")[2] if isinstance(value, ast.Call) else ""
