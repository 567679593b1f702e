"""diff: prints the differences between two locations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from storage_backend.base import StorageBackend
from storage_backend.cli.exit_codes import Exit, code_of_report
from storage_backend.cli.operands import backend_at
from storage_backend.cli.output import Lines, coloured, common, print_error
from storage_backend.cli.standard_streams import ignore_output_errors
from storage_backend.cli.transfer import explain_empty, had_objects, pair, scope

if TYPE_CHECKING:  # imported by the functions that use it
    from storage_backend.transfer import Event

Show: TypeAlias = Callable[[str, str], None]


@click.command(no_args_is_help=True)
@pair
@scope
@click.option("--checksum", is_flag=True, help="Compare sizes and contents, not times.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@coloured
@common
def diff(source: str, target: str, quiet: bool, as_json: bool, checksum: bool, **options: Any) -> int:
    """Print the differences between two locations, by size and time.

    Each line has the difference and the name: missing (only SOURCE has it), extra (only TARGET has it), size, time, or digest. Contents
    are read only with --checksum, and nothing is changed. The exit code is 4 if there is a difference; with -q and without --checksum,
    diff stops at the first one.

    Times are compared as by sync: if TARGET does not keep the times of its sources (S3), only objects that are newer in SOURCE differ. If
    a side has no times, only sizes are compared.

    \b
    Examples:
      storage-backend diff ./papers sqlite:///archive.db
      storage-backend diff --checksum ./papers sqlite:///archive.db
      storage-backend diff -q ./papers /mnt/backup/papers && echo the same
      storage-backend diff --pattern '**/*.pdf' --json ./papers s3://bucket/papers
    """
    ignore_output_errors(if_closed=True)  # the exit code says whether anything differs
    lines = Lines()

    def show(identifier: str, difference: str) -> None:
        if as_json:
            lines.record({"identifier": identifier, "difference": difference})
        else:
            lines.difference(difference, identifier)

    with backend_at(source) as one, backend_at(target) as other:
        if checksum:
            return _by_content(one, other, options, None if quiet else show, live=not (quiet or as_json))
        return _by_size_and_time(one, other, options, None if quiet else show)


def _by_size_and_time(
    source: StorageBackend, target: StorageBackend, options: dict[str, Any], show: Show | None
) -> int:
    """Compare two scans in constant memory. Without *show*, stop at the first difference."""
    from storage_backend.transfer.engine import TransferEngine
    from storage_backend.transfer.options import TransferOptions

    engine = TransferEngine("sync", source, target, TransferOptions(delete=True, **options))
    some = different = False
    for action in engine.plan():
        some = some or action.kind != "delete"
        # Other actions: sync would read the content, but size and time are equal.
        if action.kind not in {"copy", "delete"}:
            continue
        different = True
        if show is None:
            break
        show(action.identifier, {"newer": "time", "checksum": "digest"}.get(action.reason, action.reason))
    for error in engine.report.failed.values():  # entries that the scan skipped
        print_error(str(error))
    if show is not None and not (some or engine.report.failed):
        explain_empty(source, options)
    return Exit.DIFFERENT if different else Exit.SOME_FAILED if engine.report.failed else Exit.DONE


def _by_content(
    source: StorageBackend,
    target: StorageBackend,
    options: dict[str, Any],
    show: Show | None,
    *,
    live: bool,
) -> int:
    """Compare by `verify`. With *live*, show its progress on stderr."""
    from storage_backend import transfer
    from storage_backend.cli.display import Display
    from storage_backend.cli.progress import summarize

    display = Display(quiet=not live)

    def on_event(event: Event) -> None:
        action = event.fields.get("action", "")
        if event.kind != "object" or not action.startswith("differs/"):
            display(event)
            return
        if show is not None:
            display.clear()
            show(event.fields["identifier"], action.removeprefix("differs/"))

    try:
        report = transfer.verify(source, target, **options, verify="digest", on_event=on_event)
    finally:
        display.clear()
    summarize(report, quiet=True)
    if show is not None and not had_objects(report):
        explain_empty(source, options)
    return code_of_report(report)
