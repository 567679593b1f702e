"""Facts: what a server's shell can do, found out by one command that tries it."""

from __future__ import annotations

import hashlib
import io
import re
import secrets
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType

from storage_backend.backends.remote import scripts
from storage_backend.backends.remote.commands import Command, CommandError, OpenChannel
from storage_backend.backends.remote.finding import FIELDS
from storage_backend.backends.remote.tarstream import archive, members
from storage_backend.errors import IntegrityError

ALGORITHMS = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")
LONGEST = 5.0  # seconds
_ODD = b"-a \\n\n'\"$(x)`!*"
_CONTENT = b"0123456789"
_MTIME = 1_000_000_000


@dataclass(frozen=True)
class Facts:
    """Which of the operations of `Shell` work; none by default.

    Attributes:
        read_from: reading from an offset.
        write: writing, from an offset too.
        digests: algorithm -> whether one process takes many files; else it is one each.
        umask: of new files; None if unknown.
        clean: nothing is printed before a command's own output.
        start_seconds: from asking for a channel to a command's first output.
    """

    read: bool = False
    read_from: bool = False
    write: bool = False
    pack: bool = False
    unpack: bool = False
    find: bool = False
    find_names: bool = False
    copy: bool = False
    rename: bool = False
    link: bool = False
    remove: bool = False
    directories: bool = False
    sync: bool = False
    digests: Mapping[str, bool] = field(default_factory=lambda: MappingProxyType({}))
    umask: int | None = None
    clean: bool = False
    start_seconds: float = 0.0


def probe(open_channel: OpenChannel, directory: bytes | None, longest: float = LONGEST) -> Facts:
    """Try each operation in a scratch directory beneath *directory*, or where the server keeps temporary files.

    Every failure, a refused channel and a lost connection included, only makes fewer facts.

    Args:
        open_channel: gives a new session channel.
        directory: absolute.
        longest: seconds for all of it.
    """
    token = secrets.token_hex(16).encode()
    sent = b"".join(archive([(b"0", _CONTENT, _MTIME)]))
    script = scripts.command(
        token, _script(), directory or b"", b".~sb-probe-" + token, _ODD, b"%d" % len(sent)
    )
    began = time.monotonic()
    answers: dict[bytes, bytes] = {}
    noise, took = -1, 0.0
    # A connection's end, a refusal, an answer that makes no sense: each means that no more is known.
    with suppress(Exception), Command(open_channel, script, longest, stdin=[sent], marker=token) as running:
        watch = threading.Timer(longest, running.close)
        watch.daemon = True
        watch.start()
        try:
            while line := running.read_line():
                if noise < 0:
                    noise, took = running.noise, time.monotonic() - began
                name, status, size = line.split()
                if not 0 <= int(size) <= 1 << 20:
                    break
                output = _exactly(running, int(size))
                if status == b"0":
                    answers[name] = output
            running.finish()  # the scratch directory is gone then
        finally:
            watch.cancel()
    return _facts(answers, noise == 0, took, len(sent))


def _exactly(running: Command, size: int) -> bytes:
    pieces = []
    while size:
        piece = running.read(size)
        if not piece:
            raise CommandError(0, b"", "an answer is cut")
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _script() -> bytes:
    """BASE NAME ODD SIZE: try all, and print of each "name status length" and what it printed."""
    lines = [
        rb"""
base=${1:-${TMPDIR:-/tmp}}
d=$base/$2
(umask 077; mkdir -- "$d") || exit
trap 'rm -rf -- "$d"' EXIT
trap 'exit 1' HUP INT PIPE TERM
u=$(umask)
mkdir "$d/t" "$d/t/c" "$d/u" || exit
printf 0123456789 >"$d/t/$3"
printf 1 >"$d/t/b"
printf 2 >"$d/t/c/.~sb-x"
printf 3 >"$d/t/c/d"
ln -s b "$d/t/l"
ln "$d/t/b" "$d/t/h" || printf 1 >"$d/t/h"
told() { r=$?; printf '%s %d %d\n' "$1" "$r" "$(($(wc -c <"$d/o")))"; cat "$d/o"; }
printf %s "$u" >"$d/o"; told umask
"""
    ]

    def attempt(name: str, script: bytes, arguments: bytes, stdin: bytes = b"</dev/null") -> None:
        call = scripts.invocation(script)
        source = stdin if stdin.startswith(b"<") else b""
        feed = b"" if source or not stdin else stdin + b" | "
        lines.append(
            b'%b%b %b %b >"$d/o" 2>/dev/null; told %b\n' % (feed, call, arguments, source, name.encode())
        )

    attempt("write", scripts.WRITE, b'"$d/n" 0 ""', stdin=b"")
    attempt("append", scripts.WRITE, b'"$d/n" "$4" ""', stdin=b"printf x")
    attempt("read", scripts.READ, b'"$d/t/$3" 1')
    attempt("read_from", scripts.READ, b'"$d/t/$3" 4')
    attempt("pack", scripts.PACK, b'"$d/t"', stdin=b"""printf './%s\\0' "$3" b l c h""")
    attempt("find", scripts.FIND_ALL, b'"$d/t" "" x ""')
    attempt("find_names", scripts.FIND_NAMES, b'"$d/t" "" x ""')
    attempt("unpack", scripts.UNPACK, b'"$d/u"', stdin=b'<"$d/n"')
    attempt("unpacked", b'stat -c "%a %Y %s" -- "$1"', b'"$d/u/0"')
    attempt("copy", scripts.COPY, b'"$d/t/$3" "$d/k"')
    attempt("copied", b'stat -c "%a %s" -- "$1" && [ ! "$1" -nt "$2" ]', b'"$d/k" "$d/t/$3"')
    attempt("link", scripts.LINK, b'"$d/t/$3" "$d/m"')
    attempt("linked", scripts.LINK, b'"$d/t/$3" "$d/m" || [ "$?" = 107 ]')
    attempt("rename", scripts.RENAME, b'"$d/t/$3" "$d/t/b"')
    attempt("renamed", b'cat -- "$1"', b'"$d/t/b"')
    attempt("sync", scripts.SYNC, b'"$d/t"')
    for algorithm in ALGORITHMS:
        tool = b"%bsum" % algorithm.encode()
        paths = b"""printf '%s\\0' "$d/t/b" "$d/gone\""""
        attempt(f"many-{algorithm}", scripts.DIGESTS, tool, stdin=paths)
        lines.append(b'[ -s "$d/o" ] || {\n')
        attempt(f"single-{algorithm}", scripts.DIGESTS_SINGLY, tool, stdin=paths)
        lines.append(b"}\n")
    attempt("directories", scripts.DIRECTORIES, b"", stdin=b"""printf '%s\\0' "$d/x/$3" """)
    attempt("made", b'[ -d "$1" ]', b'"$d/x/$3"')
    attempt("remove", scripts.REMOVE, b"", stdin=b"""printf '%s\\0' "$d/t/b" "$d/gone" """)
    attempt("removed", b'[ ! -e "$1" ]', b'"$d/t/b"')
    attempt("remove_tree", scripts.REMOVE_TREE, b'"$d/t"')
    attempt("tree_removed", b'[ ! -e "$1" ]', b'"$d/t"')
    lines.append(b"printf '\\n'\n")
    return b"".join(lines)


def _facts(answers: Mapping[bytes, bytes], clean: bool, took: float, size: int) -> Facts:
    umask = int(answers[b"umask"], 8) if re.fullmatch(rb"[0-7]{1,4}", answers.get(b"umask", b"")) else None
    mode = b"%o" % (0o666 & ~(umask or 0))

    def gave(name: str, expected: bytes) -> bool:
        return answers.get(name.encode()) == expected

    def sums(way: str) -> list[str]:
        return [
            algorithm
            for algorithm in ALGORITHMS
            if _is_sum(answers.get(f"{way}-{algorithm}".encode()), algorithm)
        ]

    return Facts(
        read=_is_read(answers.get(b"read"), 0),
        read_from=_is_read(answers.get(b"read_from"), 3),
        write=gave("write", b"%d\n" % size) and gave("append", b"%d\n" % (size + 1)),
        pack=_is_pack(answers.get(b"pack")),
        unpack=gave("unpack", b"") and gave("unpacked", b"%b %d %d\n" % (mode, _MTIME, len(_CONTENT))),
        find=_paths(answers.get(b"find"), FIELDS) == sorted([_ODD, b"b", b"c", b"c/d", b"h", b"l"]),
        find_names=_paths(answers.get(b"find_names"), 1) == sorted([_ODD, b"b", b"c/d", b"h", b"l"]),
        copy=gave("copy", b"%d\n" % len(_CONTENT)) and gave("copied", b"%b %d\n" % (mode, len(_CONTENT))),
        rename=gave("rename", b"") and gave("renamed", _CONTENT),
        link=gave("link", b"") and gave("linked", b""),
        remove=all(gave(name, b"") for name in ("remove", "removed", "remove_tree", "tree_removed")),
        directories=gave("directories", b"") and gave("made", b""),
        sync=gave("sync", b""),
        digests=MappingProxyType(
            {**dict.fromkeys(sums("single"), False), **dict.fromkeys(sums("many"), True)}
        ),
        umask=umask,
        clean=clean,
        start_seconds=took,
    )


def _is_read(answer: bytes | None, offset: int) -> bool:
    pattern = rb"\d+:\d+:%d:-?\d+(\.\d+)?\n%b" % (len(_CONTENT), _CONTENT[offset:])
    return re.fullmatch(pattern, answer or b"") is not None


def _is_pack(answer: bytes | None) -> bool:
    asked = iter([b"./" + name for name in (_ODD, b"b", b"l", b"c", b"h")])
    try:
        found = list(members(io.BytesIO(answer or b"").read, asked, len(_CONTENT)))
    except (IntegrityError, EOFError):
        return False
    return found == [(_ODD, _CONTENT), (b"b", b"1"), (b"l", b"1"), (b"h", b"1")]


def _is_sum(answer: bytes | None, algorithm: str) -> bool:
    digest = hashlib.new(algorithm, _CONTENT, usedforsecurity=False).hexdigest().encode()
    return answer is not None and answer.startswith(digest + b"  ") and answer.endswith(b"/t/b\0")


def _paths(answer: bytes | None, fields: int) -> list[bytes]:
    return [record[fields:] for record in (answer or b"").split(b"\0")[:-1]]
