"""Which error ends with which code."""

from collections import Counter

import pytest

from storage_backend import (
    AccessDeniedError,
    AuthenticationError,
    BatchError,
    ConfigurationError,
    IntegrityError,
    InvalidIdentifierError,
    MissingClientError,
    NotAFileError,
    NotFoundError,
    QuotaExceededError,
    StorageError,
    StorageTimeoutError,
    TransferReport,
    UnavailableError,
    UnsupportedOperationError,
)
from storage_backend.cli.exit_codes import Exit, code_of, code_of_failures, code_of_report

pytestmark = pytest.mark.quick

NOT_FOUND = NotFoundError("gone", identifier="a")
AWAY = UnavailableError("away", identifier="a")
DENIED = AccessDeniedError("denied", identifier="a")
FULL = QuotaExceededError("full", identifier="a")
BROKEN = IntegrityError("broken", identifier="a")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (NOT_FOUND, 3),
        (FileNotFoundError("x"), 3),
        (AWAY, 5),
        (StorageTimeoutError("late"), 5),
        (DENIED, 1),
        (AccessDeniedError("the whole place"), 7),
        (PermissionError("x"), 1),
        (AuthenticationError("who?", identifier="a"), 7),
        (FULL, 7),
        (ConfigurationError("x"), 7),
        (MissingClientError("x"), 7),
        (BROKEN, 4),
        (InvalidIdentifierError("x", identifier="../x"), 2),
        (NotAFileError("x", identifier="a"), 2),
        (StorageError("x", identifier="a"), 1),
        (StorageError("the database is corrupt"), 7),
        (UnsupportedOperationError("x", identifier="a"), 1),
        (UnsupportedOperationError("x"), 7),
        (BatchError("x", failures={"a": AWAY, "b": AWAY}), 5),
        (BatchError("x", failures={"a": AWAY, "b": DENIED}), 1),
        (BatchError("x", failures={"a": AWAY, "b": BROKEN}), 4),
        (ZeroDivisionError("a bug"), 7),
    ],
)
def test_code_of_an_error(error: BaseException, code: int) -> None:
    assert code_of(error) == code


@pytest.mark.parametrize(
    ("errors", "done", "code"),
    [
        ([], 0, 0),
        ([], 3, 0),
        ([NOT_FOUND], 0, 3),
        ([NOT_FOUND], 1, 1),
        ([NOT_FOUND, DENIED], 0, 1),
        ([AWAY], 1, 5),
        ([AWAY, NOT_FOUND], 1, 1),
        ([BROKEN, NOT_FOUND], 1, 4),
        ([FULL, BROKEN], 1, 7),
    ],
)
def test_code_of_several(errors: list[BaseException], done: int, code: int) -> None:
    assert code_of_failures(errors, done) == code


def report(**fields: object) -> TransferReport:
    return TransferReport("sync", "a", "b", **{"plan_complete": True, **fields})  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (report(), Exit.DONE),
        (report(skipped=Counter({"journal": 3})), Exit.DONE),
        (report(failed={"a": DENIED, "b": AWAY}), Exit.SOME_FAILED),
        (report(failed={"a": AWAY}), Exit.RETRYABLE),
        (report(failed={"a": NOT_FOUND}), Exit.SOME_FAILED),
        (report(failed={"a": BROKEN, "b": AWAY}), Exit.DIFFERENT),
        (report(differences={"a": "missing"}, failed={"b": AWAY}), Exit.DIFFERENT),
        (report(refused=["too many"]), Exit.LIMIT),
        (report(refused=["since some failed"], failed={"a": DENIED}), Exit.SOME_FAILED),
    ],
)
def test_code_of_a_report(found: TransferReport, code: Exit) -> None:
    assert code_of_report(found) == code
