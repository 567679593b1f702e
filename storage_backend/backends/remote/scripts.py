"""Shell scripts for the server: POSIX sh, run by `sh -c` with paths as arguments.

The probe and the operations run the same scripts. They use options of GNU tools; the probe tests which work.
"""

from __future__ import annotations

from storage_backend.backends.remote.commands import quote

MISSING = 103
DIRECTORY = 104
DENIED = 105
IRREGULAR = 106
EXISTS = 107
CHANGED = 109
NOT_DIRECTORY = 110
AGAIN = 111

# GNU tar reads TAR_OPTIONS; POSIXLY_CORRECT changes option parsing in GNU tools; messages must be in English.
_ENVIRONMENT = b"LC_ALL=C; export LC_ALL; unset TAR_OPTIONS POSIXLY_CORRECT CDPATH; "

# fail FILE: exit with a status for why it cannot be read. It is missing only if its nearest existing parent can be searched.
_FAIL = b"""
fail() {
  [ -d "$1" ] && exit 104
  [ -e "$1" ] && { [ -f "$1" ] || exit 106; exit 105; }
  p=$1
  while p=${p%/*}; [ -n "$p" ] && ! [ -e "$p" ]; do :; done
  [ -d "${p:-/}" ] && ! [ -x "${p:-/}" ] && exit 105
  exit 103
}
readable() { [ -f "$1" ] && [ -r "$1" ] || fail "$1"; }
absent() {
  p=${1%/*}
  [ -d "${p:-/}" ] || { [ -e "${p:-/}" ] && exit 110; fail "$1"; }
  [ -w "${p:-/}" ] && [ -x "${p:-/}" ] || exit 105
  [ -e "$1" ] || [ -L "$1" ] && exit 107
  :
}
enter() {
  cd -P -- "$1" 2>/dev/null && return
  [ -d "$1" ] && exit 105
  [ -e "$1" ] && exit 110
  fail "$1"
}
"""

_FSTAT = b"stat -L -c %d:%i:%s:%.9Y /dev/stdin <&3"

# DIRECTORY TOKEN WATCH: common to FIND and FIND_NAMES. find's status goes to standard error, as a pipeline returns only the
# status of its last command. Without a terminal sshd sends no signal when the client disconnects, so a process waits for the
# end of standard input.
_FIND = b"""
enter "$1"
exec 4<&0
{ find . -mindepth 1 -ignore_readdir_race -name '.~sb-*' -prune %b
  printf '\\n%%s %%d\\n' "$2" "$?" >&2; } | sort %b &
s=$!
w=
[ -z "$3" ] || { (read -r x <&4; kill "$s") >/dev/null 2>&1 & w=$!; }
wait "$s"
r=$?
[ -z "$w" ] || kill "$w" 2>/dev/null
exit "$r"
"""
# The target's type is printed, not tested: -xtype fails for a symlink to itself.
FIND_NAMES = _FAIL + _FIND % (b"-o -type f -printf 'f%P\\0' -o -type l -printf '%Y%P\\0'", b"-s -z -k1.2")
# Fields of fixed width come first, and sort skips them: a path may contain any byte.
_DETAILS = b"! -type d -printf '%y%Y%20s%23T@%P\\0'"
FIND = _FAIL + _FIND % (_DETAILS + b" -o " + _DETAILS, b"-s -z -k1.46")  # temporary names too

# FILE NEW: copy with the same modification time and the default mode.
COPY = (
    _FAIL
    + b"""
readable "$1"
absent "$2"
exec 3<"$1"
set -C
: >"$2"
set +C
a=$("""
    + _FSTAT
    + b""") || exit
cp -- /dev/stdin "$2" <&3 || exit
touch -r /dev/stdin -- "$2" <&3 || exit
[ "$("""
    + _FSTAT
    + b""")" = "$a" ] || exit 109
stat -c %s -- "$2"
"""
)

# FILE TARGET
RENAME = (
    _FAIL
    + b"""
mv -fT -- "$1" "$2" && exit
r=$?
[ -e "$1" ] || [ -L "$1" ] || fail "$1"
[ -d "$2" ] && ! [ -L "$2" ] && exit 104
p=${2%/*}
[ -e "${p:-/}" ] || exit 103
exit "$r"
"""
)
LINK = (
    _FAIL
    + b"""
ln -T -- "$1" "$2" && exit
r=$?
[ -e "$2" ] || [ -L "$2" ] && exit 107
[ -e "$1" ] || [ -L "$1" ] || fail "$1"
exit "$r"
"""
)

# SUM: digests of the regular files named on standard input, "HEX  NAME" each, in order. xargs splits the list because a shell
# copies all arguments to append one.
DIGESTS = b"""
xargs -0 -n 200 sh -c '
c=$1
shift
n=$#
while [ "$n" -gt 0 ]; do
  f=$1
  shift
  n=$((n - 1))
  [ -f "$f" ] && [ -r "$f" ] && set -- "$@" "$f"
done
[ "$#" = 0 ] || "$c" -z -- "$@"
:' sh "$1"
"""
# For tools without -z: one process per file; the script prints the name.
DIGESTS_SINGLY = b"""
xargs -0 -n 200 sh -c '
c=$1
shift
for f do
  [ -f "$f" ] && [ -r "$f" ] && h=$("$c" <"$f") && printf "%s  %s\\0" "${h%% *}" "$f"
done
:' sh "$1"
"""

# DIRECTORY: a tar archive of the names on standard input, each prefixed with "./".
PACK = (
    _FAIL
    + b"""
enter "$1"
tar -c -f - --format=gnu --no-unquote --null --no-recursion --hard-dereference -h -T -
"""
)

# DIRECTORY TOKEN: unpack archives one after the other. A line "SIZE LIST -m SUM" (with "-" to omit the last two) precedes each;
# a line of TOKEN and the status follows its output. Files get the default owner and mode, and with -m the server's time. An
# archive begins with the files LIST, the names of the other files, and LIST+, the names of their targets. The output is size,
# mode and time of each file, its digest if SUM is given, and mode and name of each existing target. Either all files of an
# archive remain or none. -o is --no-same-owner. tar creates missing directories, but fails with status 111 if another tar
# creates the same one at the same time.
UNPACK = (
    _FAIL
    + b"""
unpack() {
  [ -d "$1" ] || mkdir -p -- "$1"
  enter "$1"
  said=$(tar -x -f - -o --no-same-permissions --warning=no-timestamp $3 2>&1)
  r=$?
  [ -z "$said" ] || printf '%s\\n' "$said" >&2
  if [ "$r" = 0 ]; then
    xargs -0 stat --printf '%s %f %Y\\0' -- <"$2" && { [ -z "$4" ] || xargs -0 "$4" -z -- <"$2"; }
    r=$?
  fi
  if [ "$r" = 0 ]; then
    xargs -0 stat --printf '%f %n\\0' -- <"$2+" 2>/dev/null
  elif [ -f "$2" ]; then
    xargs -0 rm -f -- <"$2"
  fi
  rm -f -- "$2" "$2+"
  case $said in *': Cannot open: No such file or directory'*) r=111 ;; esac
  exit "$r"
}
while read -r n l m s; do
  [ "$m" != - ] || m=
  [ "$s" != - ] || s=
  # Drop the rest of the archive, or it would be read as the next line.
  head -c "$n" | { (unpack "$1" "$l" "$m" "$s"); r=$?; cat >/dev/null; exit "$r"; }
  printf '%s %d\\n' "$2" "$?"
done
"""
)

SYNC = b'sync -f -- "$1"'


def invocation(script: bytes, *arguments: bytes) -> bytes:
    """The command line that runs *script* in `sh`."""
    return b" ".join([b"sh -c", quote(_ENVIRONMENT + script), b"sh", *map(quote, arguments)])


def command(marker: bytes, script: bytes, *arguments: bytes, beat: int | None = None) -> bytes:
    """The command line for a login shell that prints *marker* on a line and runs *script* in `sh`.

    Args:
        marker: printed before anything else.
        script: one of this module's.
        arguments: of the script.
        beat: seconds between dots on standard error, a heartbeat while a tool prints nothing; None for none. With it, the
            script must not `exec`.
    """
    began = b"printf '%%s\\n' %b\n" % marker
    if beat is not None:
        # sleep must not inherit the channel's descriptors: sshd would wait for it.
        began += (
            b"(while sleep %d 2>/dev/null; do printf . >&2; done) </dev/null >/dev/null &\n"
            b"b=$!\ntrap 'kill \"$b\" 2>/dev/null' EXIT\n" % beat
        )
    return b"exec " + invocation(began + script, *arguments)
