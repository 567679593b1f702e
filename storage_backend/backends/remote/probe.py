"""Probes which features a server's shell has, by one command that tries them all; FeatureCache caches the results."""

from __future__ import annotations

import hashlib
import io
import re
import secrets
import stat
import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType

from storage_backend.backends.remote import scripts, tar_unpacker
from storage_backend.backends.remote.commands import Command, CommandError, OpenChannel
from storage_backend.backends.remote.find_output import FIELDS
from storage_backend.backends.remote.library import limited
from storage_backend.backends.remote.tar_format import members
from storage_backend.backends.remote.tar_unpacker import TarMember, UnpackedFile
from storage_backend.errors import IntegrityError
from storage_backend.streams import sha256

ALGORITHMS = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")
LONGEST = 5.0  # seconds of a probe
REMEMBERED = 600.0  # seconds until cached features expire
_ODD = b"-a \\n\n'\"$(x)`!*"
_CONTENT = b"0123456789"
_MTIME = 1_000_000_000
_LISTING = b".~sb-listing"
_FIRST = "sha256"  # of the algorithms
_MAX_OUTPUT = 1 << 20  # bytes
_MEMBERS = (  # a name that fits a tar header and one that does not; an existing target and a missing one
    TarMember(b"n/" + _ODD, b"l", _CONTENT, _MTIME),
    TarMember(b"n/" + b"m" * 120, _ODD + b"-", b"", 0),
)


@dataclass(frozen=True)
class ShellFeatures:
    """Which operations of `Shell` work.

    Attributes:
        unpack: both with digests and without.
        digests: algorithm -> whether one process can digest many files, or each needs its own.
        whole: whether the probe completed.
    """

    find: bool = False
    find_names: bool = False
    copy: bool = False
    rename: bool = False
    link: bool = False
    sync: bool = False
    pack: bool = False
    unpack: bool = False
    digests: Mapping[str, bool] = field(default_factory=lambda: MappingProxyType({}))
    whole: bool = field(default=False, compare=False)


def probe(open_channel: OpenChannel, directory: bytes | None, longest: float = LONGEST) -> ShellFeatures:
    """Try each operation in a scratch directory. Never raises: after any failure, even a lost connection, features are missing.

    Args:
        open_channel: opens a session channel.
        directory: absolute parent of the scratch directory; None for the server's TMPDIR.
        longest: seconds for the whole probe.
    """
    token = secrets.token_hex(16).encode()
    script = scripts.command(token, _script(), directory or b"", b".~sb-probe-" + token, _ODD, token)
    request = tar_unpacker.request(_MEMBERS, _LISTING, dated=True, digests=True)
    said = bytearray()
    whole = False
    # A lost connection, a refusal, invalid output: the features tested so far count.
    with (
        suppress(Exception),
        Command(open_channel, script, longest, stdin=request, marker=token) as running,
        limited(longest, running.close),
    ):
        while len(said) < _MAX_OUTPUT and (piece := running.read(_MAX_OUTPUT)):
            said += piece
        running.finish()  # the scratch directory is removed by now
        whole = True
    output, *others = bytes(said).split(b"\n%b " % token)
    answers = {}
    for each in others:
        line, _, following = each.partition(b"\n")
        name, _, status = line.partition(b" ")
        if status == b"0":
            answers[name] = output
        output = following
    return _features(answers, whole)


class FeatureCache:
    """Caches features of servers for `REMEMBERED` seconds: a probe takes longer than connecting."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: dict[Hashable, tuple[float, ShellFeatures]] = {}
        self._warned: set[Hashable] = set()

    def get(self, server: Hashable) -> ShellFeatures | None:
        """The cached features of *server*; None if missing or expired."""
        found, features = self._kept.get(server, (0.0, None))
        return features if features is not None and self._clock() - found < REMEMBERED else None

    def put(self, server: Hashable, features: ShellFeatures) -> None:
        """Cache *features* of a complete probe; an incomplete one may be due to a busy server."""
        if features.whole:
            self._kept[server] = (self._clock(), features)

    def forget(self, server: Hashable) -> None:
        """Drop the cached features of *server*."""
        self._kept.pop(server, None)

    def first_warning(self, server: Hashable) -> bool:
        """Whether this is the first call for *server*."""
        first = server not in self._warned
        self._warned.add(server)
        return first


def _script() -> bytes:
    """The script, with arguments BASE NAME ODD TOKEN. For each attempt it prints the output and a line of TOKEN, name and status.

    It collects outputs in files and prints many with one `cat`: starting processes is the main cost.
    """
    lines = [
        rb"""
base=${1:-${TMPDIR:-/tmp}}
d=$base/$2
(umask 077; mkdir -- "$d") || exit
trap 'rm -rf -- "$d"' EXIT
trap 'exit 1' HUP INT PIPE TERM
u=$(umask)
mkdir "$d/t" "$d/t/c" "$d/o" || exit
cat >"$d/a"
printf 0123456789 >"$d/t/$3"
printf 1 >"$d/t/b"
printf 2 >"$d/t/c/.~sb-x"
printf 3 >"$d/t/c/d"
ln -s b "$d/t/l"
f=
t=$4
tried() { printf '\n%s %s %d\n' "$t" "$1" "$?" >"$d/o/$1+"; f="$f $1 $1+"; }
show() { (cd "$d/o" && exec cat $f); f=; }
printf %s "$u" >"$d/o/umask"; tried umask
"""
    ]

    def run(name: str, call: bytes) -> None:
        lines.append(b'%b >"$d/o/%b" 2>/dev/null; tried %b\n' % (call, name.encode(), name.encode()))

    def attempt(name: str, script: bytes, arguments: bytes, feed: bytes = b"") -> None:
        call = scripts.invocation(script) + b" " + arguments
        run(name, feed + b" | " + call if feed else call + b" </dev/null")

    attempt("find", scripts.FIND, b'"$d/t" x ""')
    attempt("find_names", scripts.FIND_NAMES, b'"$d/t" x ""')
    attempt("pack", scripts.PACK, b'"$d/t"', b"""printf './%s\\0' "$3" b l c""")
    attempt("unpack", scripts.UNPACK, b'"$d/t" %b' % _LISTING, b'cat "$d/a"')
    attempt(
        "unpacked", b'[ ! -e "$2" ] && [ ! -e "$2+" ] && cat -- "$1"', b'"$d/t/n/$3" "$d/t/%b"' % _LISTING
    )
    attempt("copy", scripts.COPY, b'"$d/t/$3" "$d/k"')
    attempt("copied", b'stat -c "%a %s" -- "$1" && [ ! "$1" -nt "$2" ]', b'"$d/k" "$d/t/$3"')
    attempt("link", scripts.LINK, b'"$d/t/$3" "$d/m"')
    attempt("linked", scripts.LINK, b'"$d/t/$3" "$d/m" || [ "$?" = 107 ]')
    attempt("rename", scripts.RENAME, b'"$d/t/$3" "$d/t/b"')
    attempt("renamed", b'cat -- "$1"', b'"$d/t/b"')
    lines.append(b"show\n")  # sync may take long
    attempt("sync", scripts.SYNC, b'"$d/t"')
    lines.append(b"show\n")
    paths = b"""printf '%s\\0' "$d/t/b" "$d/gone\""""
    for algorithm in (_FIRST, *(each for each in ALGORITHMS if each != _FIRST)):
        many, single, tool = f"many-{algorithm}", f"single-{algorithm}", b"%bsum" % algorithm.encode()
        if algorithm == _FIRST:
            attempt(many, scripts.DIGESTS, tool, paths)
        else:
            # If the script works with one tool, another only has to support the same option.
            lines.append(b'if [ -s "$d/o/many-%b" ]; then\n' % _FIRST.encode())
            run(many, tool + b' -z -- "$d/t/b"')
            lines.append(b"else\n")
            attempt(many, scripts.DIGESTS, tool, paths)
            lines.append(b"fi\n")
        lines.append(b'[ -s "$d/o/%b" ] || {\n' % many.encode())
        attempt(single, scripts.DIGESTS_SINGLY, tool, paths)
        lines.append(b"}\n")
    lines.append(b"show\n")
    return b"".join(lines)


def _features(answers: Mapping[bytes, bytes], whole: bool) -> ShellFeatures:
    umask = int(answers[b"umask"], 8) if re.fullmatch(rb"[0-7]{1,4}", answers.get(b"umask", b"")) else None
    mode = b"%o" % (0o666 & ~(umask or 0))

    def gave(name: str, expected: bytes) -> bool:
        return answers.get(name.encode()) == expected

    def sums(kind: str) -> list[str]:
        return [
            algorithm
            for algorithm in ALGORITHMS
            if _is_sum(answers.get(f"{kind}-{algorithm}".encode()), algorithm)
        ]

    return ShellFeatures(
        find=_paths(answers.get(b"find"), FIELDS) == sorted([_ODD, b"b", b"c/.~sb-x", b"c/d", b"l"]),
        find_names=_paths(answers.get(b"find_names"), 1) == sorted([_ODD, b"b", b"c/d", b"l"]),
        copy=gave("copy", b"%d\n" % len(_CONTENT)) and gave("copied", b"%b %d\n" % (mode, len(_CONTENT))),
        rename=gave("rename", b"") and gave("renamed", _CONTENT),
        link=gave("link", b"") and gave("linked", b""),
        sync=gave("sync", b""),
        pack=_is_packed(answers.get(b"pack")),
        unpack=_is_unpacked(answers.get(b"unpack"), 0o666 & ~(umask or 0)) and gave("unpacked", _CONTENT),
        digests=MappingProxyType(
            {**dict.fromkeys(sums("single"), False), **dict.fromkeys(sums("many"), True)}
        ),
        whole=whole,
    )


def _is_packed(answer: bytes | None) -> bool:
    asked = [b"./" + name for name in (_ODD, b"b", b"l", b"c")]
    try:
        found = list(members(io.BytesIO(answer or b"").read, asked, len(_CONTENT) + 2))
    except (IntegrityError, EOFError):
        return False
    return found == [(0, _CONTENT), (1, b"1"), (2, b"1")]


def _is_unpacked(answer: bytes | None, mode: int) -> bool:
    try:
        output, end, status = (answer or b"").partition(_LISTING)
        found = tar_unpacker.unpacked(_MEMBERS, output, digests=True) if end and status == b" 0\n" else []
    except CommandError:
        return False
    replaced = found[0].replaced_mode if found else None
    expected = [
        UnpackedFile(len(member.content), stat.S_IFREG | mode, member.modified, sha256(member.content), there)
        for member, there in zip(_MEMBERS, (replaced, None), strict=True)
    ]
    return found == expected and replaced is not None and stat.S_ISLNK(replaced)


def _is_sum(answer: bytes | None, algorithm: str) -> bool:
    digest = hashlib.new(algorithm, _CONTENT, usedforsecurity=False).hexdigest().encode()
    return answer is not None and answer.startswith(digest + b"  ") and answer.endswith(b"/t/b\0")


def _paths(answer: bytes | None, fields: int) -> list[bytes]:
    return [record[fields:] for record in (answer or b"").split(b"\0")[:-1]]
