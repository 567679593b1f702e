"""The program `storage-backend`. `main` runs one command and exits with its code.

The commands: `objects` (cat, get, put, cp, mv, rm, url), `listing` (ls, stat, checksum), `find`, `usage` (du, tree), `diff`,
`transfer` (sync, migrate, verify, plan), `caches` (cache) and `compact`. Read `objects` first. They share:

`operands`: opens the locations given to a command. `contents`: the objects at a location.
`output`: lines, error messages, and the common options. `units`: parses and formats sizes and times.
`display`, `progress`, `live_display`: progress of a command. `exit_codes`: the exit code for each error.
`groups`: click groups that import their commands late. `standard_streams`, `interrupts`: streams and signals of the process.
`postponed`: delays the import of a third-party module.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import click

from storage_backend import __version__
from storage_backend.cli.exit_codes import Exit, code_of
from storage_backend.cli.groups import NoArgumentsError, PassingError, Program
from storage_backend.cli.interrupts import Interrupts
from storage_backend.cli.output import print_error
from storage_backend.cli.postponed import postpone
from storage_backend.cli.standard_streams import (
    OutputError,
    dropped_output,
    ignore_output_errors,
    wrap_standard_streams,
)

logger = logging.getLogger(__name__)

NAME = "storage-backend"  # the name for which click completes

_M_ARENA_MAX = -8  # malloc.h of glibc


# Module of this package -> its commands.
_COMMANDS = {
    "caches": ("cache",),
    "compact": ("compact",),
    "diff": ("diff",),
    "find": ("find",),
    "listing": ("checksum", "ls", "stat"),
    "objects": ("cat", "cp", "get", "mv", "put", "rm", "url"),
    "transfer": ("migrate", "plan", "sync", "verify"),
    "usage": ("du", "tree"),
}


@click.group(
    cls=Program,
    homes={name: f"{__name__}.{module}" for module, names in _COMMANDS.items() for name in names},
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name=NAME)
def program() -> None:
    """Move named bytes between local disks, SSH servers, S3 and databases: verified, resumable.

    A LOCATION is a path, or a URL:

    \b
      /data/papers  ./papers  file:///data/papers
      sqlite:///relative.db  sqlite:////absolute/path.db
      postgresql://user@host:5432/database   (password: PGPASSWORD or ~/.pgpass)
      ssh://user@host:22,spare:2222/absolute/path   ssh://user@host/~/beneath/home
      s3://bucket/prefix?region=...&endpoint_url=...&profile=...   (keys: the environment or ~/.aws)
      cached+s3://bucket/prefix?cache_dir=...&max_mb=...&ttl=...   (any URL, through a cache on the local disk)
      memory:                                (a new empty store, for experiments)

    A "~" or "~user" at the beginning of a path, quoted or not, is that home directory: ~/papers, sqlite:///~/papers.db.
    "./~" is a file of that name.

    After a "#" in a URL follows, percent-encoded, the name of one object, or a prefix of names. In a path, the last component is the
    object; after s3://bucket/ the whole key is, unless it ends in "/".

    \b
    Parameters of a URL, as ?name=value&name=value:
      s3       acl, accelerate, addressing_style, anonymous, ca_bundle, checksum, content_type, create_bucket,
               endpoint_url, max_concurrency, multipart_chunk_size, multipart_threshold, profile, region,
               request_payer, server_side_encryption, sse_kms_key_id, storage_class
      ssh      agent, connection_timeout, host_key_policy (strict, accept-new, SHA256:...), io_timeout, keepalive,
               key_filename, known_hosts, max_connections, non_atomic_overwrite, shell (auto, never),
               ssh_config_file; password and passphrase as env:NAME or file:PATH
      cached+  cache_dir, cache_engine (blobs, diskcache), max_mb, ttl and stale_if_error (seconds)
      postgresql has libpq's, such as sslmode and connect_timeout.

    \b
    Examples:
      storage-backend migrate ./papers sqlite:///archive.db
      storage-backend ls -l sqlite:///archive.db
      storage-backend cat 'sqlite:///archive.db#2024/report.pdf' > report.pdf
      storage-backend diff ./papers sqlite:///archive.db

    \b
    Exit codes:
      0 done                          5 only failures that may pass when tried again
      1 some objects failed           7 fatal: full, not let in, misconfigured
      2 usage                         8 a limit was hit (--max-delete)
      3 source or target missing    130 interrupted (143: by SIGTERM)
      4 something differs
    """
    # paramiko imports it for "Match exec" in an OpenSSH configuration; that takes as long as importing the rest of paramiko.
    postpone("invoke")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the program and exit with its code."""
    if arguments is None and sys.getfilesystemencoding() != "utf-8" and "utf8" not in sys._xoptions:
        _begin_in_utf8()
    wrap_standard_streams()
    interrupts = Interrupts()
    interrupts.watch()
    interrupts.leave(run(sys.argv[1:] if arguments is None else list(arguments), interrupts))


def run(arguments: list[str], interrupts: Interrupts | None = None) -> int:
    """Run the program. Any error is one line on stderr.

    Returns:
        The exit code.
    """
    _allocate_together()
    code, rest = int(Exit.DONE), ""
    try:
        code = _perform(arguments, interrupts or Interrupts())
        sys.stdout.flush()
        lost, rest = dropped_output(), "; all else was done" if not code else ""
    except OutputError as error:
        ignore_output_errors()  # or flushing the rest at exit would print an error
        lost = error
    if lost is None:
        return code
    if lost.code != Exit.BROKEN_PIPE:  # the reader of a pipe ended on purpose
        print_error(f"{lost}{rest}")
    return code or lost.code


def _perform(arguments: list[str], interrupts: Interrupts) -> int:
    """Run the command.

    Raises:
        OutputError: its output cannot be written.
    """
    try:
        try:
            code = program.main(arguments, NAME, standalone_mode=False, obj=interrupts)
            sys.stdout.flush()
        except PassingError as passing:
            raise passing.error from None
    except NoArgumentsError as error:
        click.echo(error.help, err=True)
        return Exit.USAGE
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else NAME
        print_error(f"{error.format_message()} (see '{command} --help')")
        return Exit.USAGE
    except (KeyboardInterrupt, EOFError, click.Abort):
        interrupts.report()
        return interrupts.code
    except OutputError:
        raise
    except Exception as error:
        logger.debug("traceback", exc_info=error)
        print_error(str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}")
        return code_of(error)
    return code if isinstance(code, int) else Exit.DONE


def _begin_in_utf8() -> None:
    """Restart in Python's UTF-8 mode, which is the default in the locales C and POSIX, and everywhere from Python 3.15 on.

    Arguments and file names are bytes, and identifiers are these bytes decoded as UTF-8 (`identifiers.decode`). In another encoding,
    the same argument would name another object.
    """
    with suppress(OSError):
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606 - this program itself


def _allocate_together() -> None:
    """Limit glibc to two arenas (mallopt(3)): Python runs one thread at a time, and one arena per thread fragments memory."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
