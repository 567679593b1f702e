# Names that are not UTF-8 are bytes, which pathlib does not take:
# ruff: noqa: PTH101, PTH102, PTH103, PTH116, PTH118, PTH208, PTH211
from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from storage_backend.backends.remote.commands import Command, CommandError, quote
from storage_backend.backends.remote.find_output import FindRecord
from storage_backend.backends.remote.probe import ALGORITHMS, ShellFeatures
from storage_backend.backends.remote.shell import Shell
from storage_backend.testing.subject import same
from tests.tiers import few

if TYPE_CHECKING:
    import paramiko

    from tests.ssh_servers import SSHPlace

NAMES = [
    b"plain",
    b"-rf",
    b"--help",
    b" ",
    b" spaces at ends ",
    b"'",
    b'"',
    b"\\",
    b"\\n\\0",
    b"$(touch canary)",
    b"`touch canary`",
    b"; touch canary;",
    b"a\nb",
    b"\n",
    b"\ttab",
    b"a\r",
    b"*",
    b"?[a]",
    b"~",
    b"!x",
    b"#x",
    b"%s%d",
    b"\xff\xfe",
    b"\x01",
    "\N{GRINNING FACE}".encode(),
    b"n" * 255,
    b"'\n" * 127,
    b"0 1\t2\n3",
    b".hidden",
    b"{a,b}",
    b"a&b|c>d<e",
]
ALONE = [b"-rf", b"'\"\\n", b"$(touch canary)`touch canary`; touch canary", b" *\n", b"\xff!~", b"'\n" * 127]
EVERYTHING = ShellFeatures(
    find=True,
    find_names=True,
    copy=True,
    rename=True,
    link=True,
    sync=True,
    pack=True,
    unpack=True,
    digests=dict.fromkeys(ALGORITHMS, True),
)


@contextmanager
def opener(server: Any) -> Iterator[Callable[[], paramiko.Channel]]:
    """What opens channels of one connection to a server or a place."""
    import paramiko

    client = paramiko.SSHClient()
    client.load_host_keys(server.known_hosts)
    client.connect(
        server.host,
        server.port,
        server.user,
        key_filename=server.key_filename,
        allow_agent=False,
        look_for_keys=False,
        banner_timeout=60,
        auth_timeout=60,
    )
    transport = client.get_transport()
    assert transport is not None
    try:
        yield transport.open_session
    finally:
        client.close()


@pytest.fixture
def open_channel(openssh_place: SSHPlace) -> Iterator[Callable[[], paramiko.Channel]]:
    with opener(openssh_place) as opening:
        yield opening


@pytest.fixture
def shell(open_channel: Callable[[], paramiko.Channel]) -> Shell:
    return Shell(open_channel, 60, EVERYTHING)


@pytest.fixture
def base(openssh_place: SSHPlace) -> bytes:
    return os.fsencode(openssh_place.local)


def put(path: bytes, content: bytes, mtime: float = 1_600_000_000.5) -> None:
    Path(os.fsdecode(path)).write_bytes(content)
    os.utime(path, (mtime, mtime))


def held(path: bytes) -> bytes:
    return Path(os.fsdecode(path)).read_bytes()


def run(
    open_channel: Callable[[], paramiko.Channel],
    command: bytes,
    io_timeout: float,
    *,
    stdin: Iterable[bytes] = (),
    marker: bytes = b"",
    limit: int = 1 << 20,
) -> bytes:
    """The standard output of *command*, of at most *limit* bytes."""
    with Command(open_channel, command, io_timeout, stdin=stdin, marker=marker) as running:
        output = running.read_all(limit)
        running.finish()
        return output


class TestCommands:
    @pytest.mark.soak
    @pytest.mark.parametrize("name", few([*NAMES, b""], 5))
    def test_quoted_word_is_one_word(self, open_channel: Callable[[], paramiko.Channel], name: bytes) -> None:
        assert run(open_channel, b"printf %s: " + quote(name), 60) == name + b":"

    def test_input_and_output_do_not_wait_for_each_other(
        self, open_channel: Callable[[], paramiko.Channel]
    ) -> None:
        block = os.urandom(1 << 20)
        found = run(open_channel, b"cat", 60, stdin=(block for _ in range(8)), limit=8 << 20)
        assert same(found, block * 8)

    def test_errors_are_taken_off_while_nothing_else_comes(
        self, open_channel: Callable[[], paramiko.Channel]
    ) -> None:
        # More than a channel's window of 2 MiB, before any output.
        command = b"head -c 5000000 /dev/zero >&2; echo last >&2; echo out"
        with Command(open_channel, command, 60) as running:
            assert running.read_all(100) == b"out\n"
            running.finish()
            assert len(running.stderr) == 16 << 10
            assert running.stderr.endswith(b"\0last\n")

    def test_status_and_errors_are_told(self, open_channel: Callable[[], paramiko.Channel]) -> None:
        with pytest.raises(CommandError, match="no luck") as caught:
            run(open_channel, b"echo some; echo no luck >&2; exit 7", 60)
        assert (caught.value.status, caught.value.stderr) == (7, b"no luck\n")

    def test_killed_command_is_an_error(self, open_channel: Callable[[], paramiko.Channel]) -> None:
        with pytest.raises(CommandError) as caught:
            run(open_channel, b"echo all; kill -9 $$", 60)
        assert caught.value.status == -1

    def test_silence_ends_in_time(self, open_channel: Callable[[], paramiko.Channel]) -> None:
        with pytest.raises(TimeoutError, match="sent nothing"):
            run(open_channel, b"exec sleep 600", 0.3)

    def test_input_that_nobody_takes_ends_in_time(self, open_channel: Callable[[], paramiko.Channel]) -> None:
        with pytest.raises(TimeoutError, match="sent nothing"):
            run(open_channel, b"exec sleep 600", 0.5, stdin=[bytes(16 << 20)])

    def test_command_that_leaves_its_input_is_an_error(
        self, open_channel: Callable[[], paramiko.Channel]
    ) -> None:
        with pytest.raises(CommandError) as caught:
            run(open_channel, b"exit 3", 60, stdin=[bytes(16 << 20)])
        assert caught.value.status == 3
        with pytest.raises(CommandError, match="before it read all its input"):
            run(open_channel, b"exit 0", 60, stdin=[bytes(16 << 20)])

    def test_what_start_up_files_print_is_dropped(self, open_channel: Callable[[], paramiko.Channel]) -> None:
        with Command(
            open_channel, b"printf 'hello\\nyou'; printf 'MARK\\nout'", 60, marker=b"MARK"
        ) as running:
            assert running.read_all(100) == b"out"

    @pytest.mark.parametrize("command", [b"echo other", b"yes", b"exit 0"])
    def test_shell_without_the_marker_is_refused(
        self, open_channel: Callable[[], paramiko.Channel], command: bytes
    ) -> None:
        with pytest.raises(CommandError):
            run(open_channel, command, 60, marker=b"MARK")

    def test_output_beyond_the_limit_is_refused(self, open_channel: Callable[[], paramiko.Channel]) -> None:
        with pytest.raises(CommandError, match="more than"):
            run(open_channel, b"yes", 60, limit=1000)

    def test_lost_connection_is_no_end(self, openssh_place: SSHPlace) -> None:
        with (
            opener(openssh_place) as opening,
            Command(opening, b"echo begun; exec cat", 60, stdin=None) as running,
        ):
            assert running.read_line() == b"begun"
            transport = running._channel.get_transport()
            assert transport is not None
            transport.sock.close()
            with pytest.raises((EOFError, OSError)):
                running.finish()


class TestProbe:
    def test_openssh_with_gnu_tools_does_all(
        self, shell: Shell, base: bytes, openssh_place: SSHPlace
    ) -> None:
        assert shell.probe(base) == EVERYTHING
        assert list(openssh_place.local.iterdir()) == []

    def test_without_a_directory_the_servers_own_is_used(self, shell: Shell, openssh_place: SSHPlace) -> None:
        assert shell.probe() == EVERYTHING
        assert list(openssh_place.local.iterdir()) == []

    def test_absent_directory_has_no_features(self, shell: Shell, base: bytes) -> None:
        assert shell.probe(base + b"/absent") == ShellFeatures()

    def test_refused_channel_has_no_features(self) -> None:
        import paramiko

        def refuse() -> paramiko.Channel:
            raise paramiko.ChannelException(1, "Administratively prohibited")

        assert Shell(refuse, 1).probe() == ShellFeatures()


@contextmanager
def place_with(tmp_path: Path, kind: str) -> Iterator[SSHPlace]:
    from tests.ssh_servers import OpenSSH, shell_script

    server = OpenSSH(command_wrapper=shell_script(tmp_path, kind))
    try:
        with server.place() as place:
            yield place
    finally:
        server.stop()


class TestShells:
    @pytest.mark.parametrize("kind", ["bash", "dash", "noisy"])
    def test_posix_shell_does_all(self, tmp_path: Path, kind: str) -> None:
        with place_with(tmp_path, kind) as place, opener(place) as opening:
            shell = Shell(opening, 60)
            assert shell.probe(os.fsencode(place.local), 60) == EVERYTHING
            put(os.fsencode(place.local) + b"/a", b"content")
            assert list(shell.find_names(os.fsencode(place.local))) == [b"a"]

    def test_busybox_lacks_what_it_lacks(self, tmp_path: Path) -> None:
        with place_with(tmp_path, "busybox") as place, opener(place) as opening:
            shell = Shell(opening, 60)
            features = shell.probe(os.fsencode(place.local), 60)
            assert (features.find, features.find_names, features.rename) == (False, False, True)
            assert features.digests["sha256"] is False
            path = os.fsencode(place.local) + b"/a\n\\"
            put(path, b"content")
            assert list(shell.digests([path], "sha256")) == [(path, hashlib.sha256(b"content").hexdigest())]

    @pytest.mark.parametrize("kind", few(["csh-like", "mute", "hung"]))
    def test_other_shells_do_nothing(self, tmp_path: Path, kind: str) -> None:
        with place_with(tmp_path, kind) as place, opener(place) as opening:
            assert Shell(opening, 60).probe(os.fsencode(place.local), 1) == ShellFeatures()


class TestAwkwardNames:
    @pytest.mark.soak
    def test_each_operation_takes_every_name(self, shell: Shell, base: bytes) -> None:
        for number, name in enumerate(ALONE):
            directory = base + b"/%d" % number
            os.makedirs(directory + b"/" + name)
            path = directory + b"/" + name + b"/" + name
            content = b"%d:" % number + name
            put(path, content)
            assert list(shell.find_names(directory)) == [name + b"/" + name]
            assert [found.path for found in shell.find(directory)] == [name + b"/" + name]
            assert list(shell.digests([path], "sha256")) == [(path, hashlib.sha256(content).hexdigest())]
            temporary = directory + b"/.~sb-" + name[:200]
            assert shell.copy(path, temporary) == len(content)
            shell.link(temporary, directory + b"/" + name + b"/2")
            shell.rename(temporary, path)
            assert held(path) == held(directory + b"/" + name + b"/2") == content
            shell.sync(directory + b"/" + name)
        assert sorted(os.listdir(base)) == sorted(b"%d" % number for number in range(len(ALONE)))

    def test_all_names_in_one_command(self, shell: Shell, base: bytes) -> None:
        for name in NAMES:
            put(base + b"/" + name, name * 3)
        paths = [base + b"/" + name for name in NAMES]
        assert list(shell.digests(paths, "md5")) == [
            (base + b"/" + name, hashlib.md5(name * 3).hexdigest()) for name in NAMES
        ]
        shell.features = ShellFeatures(digests={"md5": False})
        assert [path for path, _ in shell.digests(paths, "md5")] == paths
        assert list(shell.find_names(base)) == sorted(NAMES)
        assert [found.path for found in shell.find(base)] == sorted(NAMES)


class TestFinding:
    def test_order_is_that_of_whole_paths(self, shell: Shell, base: bytes) -> None:
        for name in (b"a", b"b", b"a!", b"a b", b"a\nb", b"ab"):
            os.mkdir(base + b"/" + name)
            put(base + b"/" + name + b"/f", b"")
        for name in (b"a0", b"a.", b"B", b"\xff", b"a/0", b"a/-", b"a/\n", b"a/ "):
            put(base + b"/" + name, b"")
        expected = sorted(
            os.path.relpath(os.path.join(directory, file), base)
            for directory, _, files in os.walk(base)
            for file in files
        )
        assert list(shell.find_names(base)) == expected
        assert [found.path for found in shell.find(base)] == expected

    def test_details_are_those_of_the_entries(self, shell: Shell, base: bytes) -> None:
        os.mkdir(base + b"/d")
        put(base + b"/d/f", b"123", -1.5)
        put(base + b"/f", bytes(100))
        os.truncate(base + b"/f", 1 << 40)
        os.utime(base + b"/f", ns=(0, 1_600_000_000_123_456_000))
        for name, target in {b"l": b"f", b"ld": b"d", b"n": b"gone", b"o": b"o"}.items():
            os.symlink(target, base + b"/" + name)
        os.mkfifo(base + b"/p")
        found = {entry.path: entry for entry in shell.find(base)}
        assert found[b"f"] == FindRecord(b"f", b"f", b"f", 1 << 40, 1_600_000_000.123456, 1_600_000_000)
        assert found[b"d/f"] == FindRecord(b"d/f", b"f", b"f", 3, -1.5, -2)
        kinds = {path: entry.kind + entry.target for path, entry in found.items()}
        assert kinds == {
            b"d/f": b"ff",
            b"f": b"ff",
            b"l": b"lf",
            b"ld": b"ld",
            b"n": b"lN",
            b"o": b"lL",
            b"p": b"pp",
        }
        assert [entry.path for entry in shell.find(base)] == [b"d/f", b"f", b"l", b"ld", b"n", b"o", b"p"]
        assert list(shell.find_names(base)) == [b"d/f", b"f", b"l"]

    def test_temporary_names_are_left_out(self, shell: Shell, base: bytes) -> None:
        os.mkdir(base + b"/.~sb-d")
        put(base + b"/.~sb-d/f", b"")
        put(base + b"/.~sb-f", b"")
        put(base + b"/.~sc", b"")
        assert list(shell.find_names(base)) == [b".~sc"]

    def test_directory_with_a_temporary_name_can_be_searched(self, shell: Shell, base: bytes) -> None:
        os.mkdir(base + b"/.~sb-d")
        put(base + b"/.~sb-d/f", b"")
        assert list(shell.find_names(base + b"/.~sb-d")) == [b"f"]

    def test_empty_directory_has_nothing(self, shell: Shell, base: bytes) -> None:
        assert list(shell.find_names(base)) == []

    def test_directory_that_is_none_is_told(self, shell: Shell, base: bytes) -> None:
        put(base + b"/f", b"")
        with pytest.raises(FileNotFoundError):
            list(shell.find_names(base + b"/gone"))
        with pytest.raises(NotADirectoryError):
            list(shell.find(base + b"/f"))


class TestChanging:
    def test_copy_has_the_sources_time_and_the_mode_of_a_new_file(self, shell: Shell, base: bytes) -> None:
        put(base + b"/a", b"content")
        Path(os.fsdecode(base + b"/new")).touch()  # in this process; the server's has the same umask
        os.chmod(base + b"/a", 0o700)
        assert shell.copy(base + b"/a", base + b"/b") == 7
        status = os.stat(base + b"/b")
        assert held(base + b"/b") == b"content"
        assert (status.st_mtime, status.st_mode) == (1_600_000_000.5, os.stat(base + b"/new").st_mode)
        with pytest.raises(FileExistsError):
            shell.copy(base + b"/a", base + b"/b")
        with pytest.raises(FileNotFoundError):
            shell.copy(base + b"/gone", base + b"/c")

    def test_what_is_no_readable_file_is_told(self, shell: Shell, base: bytes) -> None:
        os.mkdir(base + b"/d")
        os.mkfifo(base + b"/p")
        os.symlink(b"nowhere", base + b"/l")
        put(base + b"/f", b"")
        for name, kind in {
            b"gone": FileNotFoundError,
            b"gone/too": FileNotFoundError,
            b"l": FileNotFoundError,
            b"f/x": FileNotFoundError,
            b"d": IsADirectoryError,
            b"p": IsADirectoryError,
        }.items():
            with pytest.raises(kind):
                shell.copy(base + b"/" + name, base + b"/new")
        assert not os.path.lexists(base + b"/new")

    def test_copy_replaces_nothing(self, shell: Shell, base: bytes) -> None:
        put(base + b"/a", b"new")
        put(base + b"/b", b"old")
        os.symlink(b"elsewhere", base + b"/l")
        for name in (b"b", b"l"):
            with pytest.raises(FileExistsError):
                shell.copy(base + b"/a", base + b"/" + name)
        assert held(base + b"/b") == b"old"
        assert not os.path.lexists(base + b"/elsewhere")

    def test_directory_to_copy_into_that_is_not_there_is_told(self, shell: Shell, base: bytes) -> None:
        put(base + b"/a", b"")
        with pytest.raises(FileNotFoundError):
            shell.copy(base + b"/a", base + b"/d/a")
        with pytest.raises(NotADirectoryError):
            shell.copy(base + b"/a", base + b"/a/b")

    def test_rename_replaces_files_and_nothing_else(self, shell: Shell, base: bytes) -> None:
        put(base + b"/a", b"new")
        put(base + b"/b", b"old")
        os.mkdir(base + b"/d")
        with pytest.raises(IsADirectoryError):
            shell.rename(base + b"/a", base + b"/d")
        shell.rename(base + b"/a", base + b"/b")
        assert held(base + b"/b") == b"new"
        with pytest.raises(FileNotFoundError):
            shell.rename(base + b"/a", base + b"/b")

    def test_link_replaces_nothing(self, shell: Shell, base: bytes) -> None:
        put(base + b"/a", b"new")
        put(base + b"/b", b"old")
        os.mkdir(base + b"/d")
        for name in (b"b", b"d"):
            with pytest.raises(FileExistsError):
                shell.link(base + b"/a", base + b"/" + name)
        assert held(base + b"/b") == b"old"
        assert os.listdir(base + b"/d") == []

    @pytest.mark.parametrize("many", [True, False])
    def test_digests_are_of_regular_files(self, shell: Shell, base: bytes, many: bool) -> None:
        shell.features = ShellFeatures(digests=dict.fromkeys(ALGORITHMS, many))
        put(base + b"/a", b"content")
        os.mkdir(base + b"/d")
        os.mkfifo(base + b"/p")
        asked = [base + b"/" + name for name in (b"gone", b"d", b"a", b"p")]
        for algorithm in ALGORITHMS:
            expected = hashlib.new(algorithm, b"content").hexdigest()
            assert list(shell.digests(asked, algorithm)) == [(base + b"/a", expected)]
