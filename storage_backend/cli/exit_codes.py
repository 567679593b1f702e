"""The exit codes, and the exit code for each error."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import TYPE_CHECKING

from storage_backend.errors import (
    FATAL,
    BatchError,
    IntegrityError,
    InvalidIdentifierError,
    StorageError,
    is_retryable,
)

if TYPE_CHECKING:  # imported by the commands that use it
    from storage_backend.transfer.report import TransferReport


class Exit(enum.IntEnum):
    """The exit codes of the program ("Command line" in the README)."""

    DONE = 0
    SOME_FAILED = 1
    USAGE = 2
    MISSING = 3
    DIFFERENT = 4
    RETRYABLE = 5
    FATAL = 7
    LIMIT = 8
    INTERRUPTED = 130
    TERMINATED = 143
    BROKEN_PIPE = 141  # as shells report a program that SIGPIPE ended


def code_of(error: BaseException) -> Exit:
    """The exit code for one error, which ended the program or the operation on one object."""
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED
    if isinstance(error, FATAL):
        return Exit.FATAL
    if isinstance(error, BatchError):
        return code_of_failures(list(error.failures.values()))
    if isinstance(error, InvalidIdentifierError | IsADirectoryError):
        return Exit.USAGE  # a folder needs -r or another command
    if is_retryable(error):
        return Exit.RETRYABLE
    if isinstance(error, FileNotFoundError):
        return Exit.MISSING
    if isinstance(error, IntegrityError):
        return Exit.DIFFERENT
    if not isinstance(error, OSError):
        return Exit.FATAL  # a bug
    concerns_all = isinstance(error, StorageError) and error.identifier is None
    return Exit.FATAL if concerns_all else Exit.SOME_FAILED


def code_of_failures(errors: Sequence[BaseException], done: int = 0) -> Exit:
    """The exit code for an operation on many objects, of which *done* succeeded."""
    codes = {code_of(error) for error in errors}
    if not codes:
        return Exit.DONE
    for worst in (Exit.FATAL, Exit.DIFFERENT):
        if worst in codes:
            return worst
    if len(codes) == 1 and (not done or codes == {Exit.RETRYABLE}):
        return codes.pop()
    return Exit.SOME_FAILED


def code_of_report(report: TransferReport) -> Exit:
    """The exit code for a transfer."""
    if report.differences:
        return Exit.DIFFERENT
    if report.failed:
        codes = {code_of(error) for error in report.failed.values()}
        if Exit.DIFFERENT in codes:
            return Exit.DIFFERENT
        return Exit.RETRYABLE if codes == {Exit.RETRYABLE} else Exit.SOME_FAILED
    if report.refused:
        return Exit.LIMIT
    return Exit.DONE if report.plan_complete else Exit.FATAL
