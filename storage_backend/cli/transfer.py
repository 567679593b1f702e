"""sync, migrate, verify, plan: transfers between two locations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from storage_backend.base import StorageBackend
from storage_backend.cli.exit_codes import Exit, code_of_report
from storage_backend.cli.interrupts import Interrupts
from storage_backend.cli.operands import backend_at
from storage_backend.cli.output import ONE_LEVEL, Lines, coloured, common, print_error
from storage_backend.cli.standard_streams import ignore_output_errors
from storage_backend.defensive import location_of
from storage_backend.errors import ConfigurationError

if TYPE_CHECKING:
    from storage_backend.transfer import TransferReport

F = TypeVar("F", bound=Callable[..., Any])

RESUME = "completed work is kept, and the same command continues from there"


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _pattern_or_include(context: click.Context, option: click.Parameter, value: Any) -> Any:
    other = "include" if option.name == "pattern" else "pattern"
    if value and context.params.get(other):
        raise click.UsageError("--pattern and --include exclude each other; give every glob as --include")
    return value


pair = _options(click.argument("source"), click.argument("target"))
scope = _options(
    click.option(
        "--pattern",
        metavar="GLOB",
        callback=_pattern_or_include,
        help='Only objects that match, as "**/*.pdf".',
    ),
    click.option(
        "--include",
        metavar="GLOB",
        multiple=True,
        callback=_pattern_or_include,
        help="Only objects that match one of these.",
    ),
    click.option("--exclude", metavar="GLOB", multiple=True, help="No objects that match one of these."),
)
_workers = _options(
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        metavar="N",
        help="Batches or large objects transferred at once.",
    ),
    click.option(
        "--retry-for",
        type=click.FloatRange(min=0),
        metavar="SECONDS",
        help="How long to retry a side that is unreachable. [default: 60]",
    ),
)
_checksum = click.option(
    "--checksum",
    is_flag=True,
    help="Compare the content of all objects of the same size, whatever their times.",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="One event a line, as JSON.")
_target_options = _options(
    click.option(
        "--delete", is_flag=True, help="Finally, delete objects of TARGET that SOURCE does not have."
    ),
    click.option(
        "--max-delete",
        type=click.IntRange(min=0),
        metavar="N",
        help="Refuse to delete more than N objects. [default: the larger of 100 and a tenth of TARGET]",
    ),
    click.option(
        "--trash",
        metavar="PREFIX",
        help="Move objects beneath this prefix of TARGET instead of deleting them.",
    ),
    click.option("-n", "--dry-run", is_flag=True, help="Print what would be done, and change nothing."),
)


def _verification(default: str) -> Callable[[F], F]:
    return click.option(
        "--verify",
        type=click.Choice(["digest", "size", "none"]),
        default=default,
        show_default=True,
        help="How stored objects are checked.",
    )


@click.command(no_args_is_help=True)
@pair
@scope
@_target_options
@_checksum
@_verification("size")
@_workers
@_as_json
@common
def sync(source: str, target: str, quiet: bool, as_json: bool, **options: Any) -> int:
    """Copy to TARGET the objects of SOURCE that it lacks or has in another version.

    Objects with the same size and time are the same. If TARGET lists its own times (S3) and the source is not newer, the object is the
    same if TARGET has kept the source's time or has its MD5; else both are read. Both are also read if the times differ and that of the
    source is before 1980, after 2037 or in the future. A source without times is compared by size. With --checksum, only the content
    counts. An object that fails does not stop the rest.

    \b
    Examples:
      storage-backend sync ./papers sqlite:///archive.db
      storage-backend sync --delete --dry-run ./papers /mnt/backup/papers
      storage-backend sync --pattern '**/*.pdf' --exclude 'drafts/**' ./papers 'sqlite:///archive.db#papers'
    """
    from storage_backend import transfer

    return _open_and_run(transfer.sync, source, target, options, quiet=quiet, as_json=as_json)


@click.command(no_args_is_help=True)
@pair
@scope
@_target_options
@_checksum
@_verification("digest")
@click.option(
    "--journal", metavar="FILE", help="The file that records completed work. [default: named after the pair]"
)
@click.option(
    "--manifest", metavar="FILE", help="Write identifier, size and sha256 of each verified object to FILE."
)
@click.option("--delete-source", is_flag=True, help="Delete objects of SOURCE that are verified on TARGET.")
@click.option(
    "--no-flush", is_flag=True, help="With --delete-source: do not wait until TARGET survives power loss."
)
@_workers
@_as_json
@common
def migrate(source: str, target: str, quiet: bool, as_json: bool, no_flush: bool, **options: Any) -> int:
    """Copy to TARGET as sync does, and verify every object.

    Every digest is verified and recorded in a journal. After an interrupt, the same command continues and does not copy verified objects
    again.

    \b
    Examples:
      storage-backend migrate ./papers sqlite:///archive.db
      storage-backend migrate --manifest moved.jsonl sqlite:///archive.db postgresql://me@db.example/papers
      storage-backend migrate --delete-source ./inbox sqlite:///archive.db
    """
    from storage_backend import transfer

    return _open_and_run(
        transfer.migrate, source, target, {**options, "flush": not no_flush}, quiet=quiet, as_json=as_json
    )


@click.command(no_args_is_help=True)
@pair
@scope
@_verification("digest")
@click.option("--one-way", is_flag=True, help="Ignore objects that only TARGET has.")
@_workers
@_as_json
@coloured
@common
def verify(source: str, target: str, quiet: bool, as_json: bool, **options: Any) -> int:
    """Compare the contents of two locations.

    Nothing is changed. Each difference is printed; the exit code is 4 if there is one.

    \b
    Examples:
      storage-backend verify ./papers sqlite:///archive.db
      storage-backend verify --verify size --one-way ./papers sqlite:///archive.db
    """
    from storage_backend import transfer

    with backend_at(source) as one, backend_at(target) as other:
        return _run(transfer.verify, one, other, options, quiet=quiet, as_json=as_json)


@click.command(no_args_is_help=True)
@pair
@scope
@_checksum
@click.option("--delete", is_flag=True, help="As sync --delete would.")
@click.option("-a", "--all", "everything", is_flag=True, help="Also objects that would be skipped.")
@_as_json
@common
def plan(source: str, target: str, quiet: bool, as_json: bool, everything: bool, **options: Any) -> int:
    """Print what sync would do with each object, and why.

    Nothing is changed.

    \b
    Examples:
      storage-backend plan ./papers sqlite:///archive.db
      storage-backend plan --all --delete ./papers /mnt/backup/papers
    """
    from storage_backend import transfer

    lines = Lines()
    with backend_at(source) as one, backend_at(target, create=True) as other:  # only a write creates it
        try:
            actions = transfer.plan(one, other, **_given(options))
        except ConfigurationError as error:
            raise click.UsageError(str(error)) from error
        some = False
        for action in actions:
            some = some or action.kind != "delete"
            if action.kind == "skip" and not everything:
                continue
            if as_json:
                lines.record({"identifier": action.identifier, "action": str(action)})
            else:
                lines.name(action.identifier, before=f"{action!s:<24} ")
        if not (some or quiet):
            explain_empty(one, options)
    return Exit.DONE


def synchronize(source: StorageBackend, target: StorageBackend, *, quiet: bool, as_json: bool) -> int:
    """`sync` between two backends, for the commands that take -r."""
    from storage_backend import transfer

    return _run(transfer.sync, source, target, {}, quiet=quiet, as_json=as_json)


def synchronize_locations(source: str, target: str, *, quiet: bool, as_json: bool) -> int:
    """`sync` between two locations, for cp -r."""
    from storage_backend import transfer

    return _open_and_run(transfer.sync, source, target, {"dry_run": False}, quiet=quiet, as_json=as_json)


def _open_and_run(
    verb: Callable[..., TransferReport],
    source: str,
    target: str,
    options: dict[str, Any],
    *,
    quiet: bool,
    as_json: bool,
) -> int:
    """Run sync or migrate."""
    with backend_at(source) as one, backend_at(target, create=True) as other:
        return _run(verb, one, other, options, quiet=quiet, as_json=as_json)


def _run(
    verb: Callable[..., TransferReport],
    source: StorageBackend,
    target: StorageBackend,
    options: dict[str, Any],
    *,
    quiet: bool,
    as_json: bool,
) -> int:
    """Run a transfer, show its progress and summary, and return the exit code."""
    from storage_backend import transfer
    from storage_backend.cli.display import Display
    from storage_backend.cli.progress import summarize

    if not options.get("dry_run"):
        ignore_output_errors()
    interrupts = click.get_current_context().find_object(Interrupts)
    if interrupts is not None:
        changes = verb is not transfer.verify and not options.get("dry_run")
        interrupts.resume = f"; {RESUME if changes else 'nothing was changed'}"
    display = Display(quiet=quiet, as_json=as_json, dry_run=options.get("dry_run", False))
    try:
        report = verb(source, target, **_given(options), on_event=display)
    except ConfigurationError as error:
        if not display.started:
            raise click.UsageError(str(error)) from error
        raise
    finally:
        display.clear()
    if not as_json:
        summarize(report, quiet=quiet)
    if not (quiet or had_objects(report)):
        explain_empty(source, options)
    return code_of_report(report)


def had_objects(report: TransferReport) -> bool:
    """Whether the source had any objects for the transfer."""
    would = any(not action.startswith("delete") for action in report.would)
    differs = any(difference != "extra" for difference in report.differences.values())
    return bool(would or differs or report.planned or report.skipped or report.failed)


def explain_empty(source: StorageBackend, options: dict[str, Any]) -> None:
    """Print why nothing was done: a mistyped option must not look like success."""
    if next(iter(source.scan()), None) is None:
        print_error(f"{location_of(source)} holds no objects")
        return
    globs = {"--pattern": [options.get("pattern")], "--include": options.get("include", ())}
    wanted = " or ".join(f"{name} {glob!r}" for name, given in globs.items() for glob in given if glob)
    left_out = " or ".join(f"--exclude {glob!r}" for glob in options.get("exclude", ()))
    reason = f"no object of {location_of(source)} " + (
        f"matches {wanted}" + (f" and not {left_out}" if left_out else "")
        if wanted
        else f"is left after {left_out}"
    )
    hint = f"; {ONE_LEVEL}" if "/" not in wanted and "*" in wanted else ""
    print_error(f"{reason}{hint}")


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The given options; the others keep the defaults of TransferOptions."""
    return {name: value for name, value in options.items() if value is not None}
