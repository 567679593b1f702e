# Names that are not UTF-8 are bytes, which pathlib does not take:
# ruff: noqa: PTH101, PTH102, PTH116, PTH118, PTH208, PTH211
from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from storage_backend.backends.remote.commands import Command, CommandError, quote, run
from storage_backend.backends.remote.finding import Found
from storage_backend.backends.remote.probe import ALGORITHMS, Facts
from storage_backend.backends.remote.shell import Shell
from storage_backend.errors import SourceChangedError
from storage_backend.testing.subject import same

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
EVERYTHING = Facts(
    read=True,
    read_from=True,
    write=True,
    pack=True,
    unpack=True,
    find=True,
    find_names=True,
    copy=True,
    rename=True,
    link=True,
    remove=True,
    directories=True,
    sync=True,
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


def read_all(shell: Shell, path: bytes, offset: int = 0) -> bytes:
    with shell.reader(path, offset) as reader:
        return b"".join(iter(lambda: reader.read(100_000), b""))


def write_all(shell: Shell, path: bytes, content: bytes, offset: int = 0) -> int:
    with shell.writer(path, offset) as writer:
        writer.write(content)
        return writer.finish()


class TestCommands:
    @pytest.mark.parametrize("name", [*NAMES, b""])
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
            assert running.stderr_size == 5_000_005
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
        with pytest.raises(TimeoutError, match="nothing came"):
            run(open_channel, b"exec sleep 600", 0.3)

    def test_input_that_nobody_takes_ends_in_time(self, open_channel: Callable[[], paramiko.Channel]) -> None:
        with (
            Command(open_channel, b"exec sleep 600", 0.5, stdin=None) as running,
            pytest.raises(TimeoutError, match="took no data"),
        ):
            running.write(bytes(16 << 20))

    def test_command_that_leaves_its_input_is_an_error(
        self, open_channel: Callable[[], paramiko.Channel]
    ) -> None:
        with pytest.raises(CommandError) as caught:
            run(open_channel, b"exit 3", 60, stdin=[bytes(16 << 20)])
        assert caught.value.status == 3

    def test_what_start_up_files_print_is_dropped(self, open_channel: Callable[[], paramiko.Channel]) -> None:
        with Command(
            open_channel, b"printf 'hello\\nyou'; printf 'MARK\\nout'", 60, marker=b"MARK"
        ) as running:
            assert running.read_all(100) == b"out"
            assert running.noise == len("hello\nyou")

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
        facts = shell.probe(base)
        expected = {
            **vars_of(EVERYTHING),
            "umask": facts.umask,
            "clean": True,
            "start_seconds": facts.start_seconds,
        }
        assert vars_of(facts) == expected
        assert facts.umask is not None
        assert 0 < facts.start_seconds < 60
        assert list(openssh_place.local.iterdir()) == []

    def test_without_a_directory_the_servers_own_is_used(self, shell: Shell, openssh_place: SSHPlace) -> None:
        assert shell.probe().read
        assert list(openssh_place.local.iterdir()) == []

    def test_absent_directory_makes_no_facts(self, shell: Shell, base: bytes) -> None:
        assert shell.probe(base + b"/absent") == Facts()

    def test_refused_channel_makes_no_facts(self) -> None:
        import paramiko

        def refuse() -> paramiko.Channel:
            raise paramiko.ChannelException(1, "Administratively prohibited")

        assert Shell(refuse, 1).probe() == Facts()


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
    @pytest.mark.parametrize(("kind", "clean"), [("bash", True), ("dash", True), ("noisy", False)])
    def test_posix_shell_does_all(self, tmp_path: Path, kind: str, clean: bool) -> None:
        with place_with(tmp_path, kind) as place, opener(place) as opening:
            shell = Shell(opening, 60)
            facts = shell.probe(os.fsencode(place.local), 60)
            assert vars_of(facts) == {
                **vars_of(EVERYTHING),
                "umask": facts.umask,
                "clean": clean,
                "start_seconds": facts.start_seconds,
            }
            path = os.fsencode(place.local) + b"/a"
            assert write_all(shell, path, b"content") == 7
            assert read_all(shell, path) == b"content"
            assert list(shell.find_names(os.fsencode(place.local))) == [b"a"]

    def test_busybox_lacks_what_it_lacks(self, tmp_path: Path) -> None:
        with place_with(tmp_path, "busybox") as place, opener(place) as opening:
            shell = Shell(opening, 60)
            facts = shell.probe(os.fsencode(place.local), 60)
            assert (facts.find, facts.find_names, facts.pack) == (False, False, False)
            assert (facts.read, facts.write, facts.rename, facts.remove) == (True, True, True, True)
            assert facts.digests["sha256"] is False
            path = os.fsencode(place.local) + b"/a\n\\"
            assert write_all(shell, path, b"content") == 7
            assert read_all(shell, path) == b"content"
            assert list(shell.digests([path], "sha256")) == [(path, hashlib.sha256(b"content").hexdigest())]

    @pytest.mark.parametrize("kind", ["csh-like", "mute", "hung"])
    def test_other_shells_do_nothing(self, tmp_path: Path, kind: str) -> None:
        with place_with(tmp_path, kind) as place, opener(place) as opening:
            assert Shell(opening, 60).probe(os.fsencode(place.local), 1) == Facts()


def vars_of(facts: Facts) -> dict[str, object]:
    return {name: getattr(facts, name) for name in Facts.__dataclass_fields__}


class TestAwkwardNames:
    def test_each_operation_takes_every_name(self, shell: Shell, base: bytes) -> None:
        for number, name in enumerate(ALONE):
            directory = base + b"/%d" % number
            shell.make_directories([directory + b"/" + name])
            path = directory + b"/" + name + b"/" + name
            content = b"%d:" % number + name
            assert write_all(shell, path, content) == len(content)
            assert write_all(shell, path, b"more", len(content)) == len(content) + 4
            content += b"more"
            assert held(path) == content
            assert read_all(shell, path) == content
            assert read_all(shell, path, 2) == content[2:]
            assert list(shell.find_names(directory)) == [name + b"/" + name]
            assert list(shell.pack(directory + b"/" + name, [name], 1000)) == [(name, content)]
            assert list(shell.digests([path], "sha256")) == [(path, hashlib.sha256(content).hexdigest())]
            temporary = directory + b"/.~sb-" + name[:200]
            assert shell.copy(path, temporary) == len(content)
            shell.link(temporary, directory + b"/" + name + b"/2")
            shell.rename(temporary, path)
            assert held(path) == held(directory + b"/" + name + b"/2") == content
            shell.sync(directory + b"/" + name)
            shell.remove_many([path, directory + b"/" + name + b"/2", directory + b"/gone"])
            assert os.listdir(directory + b"/" + name) == []
            staging = directory + b"/" + name + b"/.~sb-" + name[:200]
            shell.make_directories([staging])
            shell.unpack(staging, [(0, content, None), (1, b"", None)])
            assert (held(staging + b"/0"), held(staging + b"/1")) == (content, b"")
            shell.remove_tree(staging)
            assert os.listdir(directory + b"/" + name) == []
        assert sorted(os.listdir(base)) == sorted(b"%d" % number for number in range(len(ALONE)))

    def test_all_names_in_one_command(self, shell: Shell, base: bytes) -> None:
        for name in NAMES:
            put(base + b"/" + name, name * 3)
        packed = shell.pack(base, NAMES, 1000)
        assert list(packed) == [(name, name * 3) for name in NAMES]
        assert packed.complete
        paths = [base + b"/" + name for name in NAMES]
        assert list(shell.digests(paths, "md5")) == [
            (base + b"/" + name, hashlib.md5(name * 3).hexdigest()) for name in NAMES
        ]
        shell.facts = Facts(digests={"md5": False})
        assert [path for path, _ in shell.digests(paths, "md5")] == paths
        assert list(shell.find_names(base)) == sorted(NAMES)
        assert [found.path for found in shell.find(base)] == sorted(NAMES)
        shell.remove_many(paths)
        assert os.listdir(base) == []


class TestReading:
    def test_size_time_and_inode_are_those_of_the_file(self, shell: Shell, base: bytes) -> None:
        put(base + b"/a", b"12345")
        status = os.stat(base + b"/a")
        with shell.reader(base + b"/a", 2) as reader:
            assert (reader.size, reader.modified) == (5, 1_600_000_000.5)
            assert reader.inode == (status.st_dev, status.st_ino)
            buffer = bytearray(10)
            assert reader.readinto(buffer) == 3
            assert bytes(buffer) == b"345" + bytes(7)
            assert reader.read(10) == b""

    @pytest.mark.parametrize("offset", [0, 1, 4096, 3 << 20, (3 << 20) + 7, 4 << 20])
    def test_content_from_an_offset(self, shell: Shell, base: bytes, offset: int) -> None:
        content = os.urandom((3 << 20) + 7)
        put(base + b"/a", content)
        assert same(read_all(shell, base + b"/a", offset), content[offset:])

    def test_linked_file_is_read(self, shell: Shell, base: bytes) -> None:
        put(base + b"/a", b"12345")
        os.symlink(b"a", base + b"/l")
        assert read_all(shell, base + b"/l") == b"12345"

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
                shell.reader(base + b"/" + name)

    def test_abandoned_reader_ends_at_once(self, shell: Shell, base: bytes) -> None:
        with Path(os.fsdecode(base + b"/a")).open("wb") as file:
            file.truncate(1 << 40)
        with shell.reader(base + b"/a") as reader:
            assert reader.read(10) == bytes(10)
        assert read_all(shell, base + b"/a", (1 << 40) - 5) == bytes(5)

    @pytest.mark.parametrize("length", [0, 9 << 20])
    def test_changed_length_is_told(self, shell: Shell, base: bytes, length: int) -> None:
        path = base + b"/a"
        put(path, bytes(8 << 20))  # more than fits between the server's cat and us
        with shell.reader(path) as reader:
            os.truncate(path, length)
            with pytest.raises(SourceChangedError):
                list(iter(lambda: reader.read(1 << 20), b""))


class TestWriting:
    def test_new_file_has_the_mode_of_new_files(self, shell: Shell, base: bytes) -> None:
        facts = shell.probe(base)
        content = os.urandom(5 << 20)
        with shell.writer(base + b"/a", algorithm="sha256") as writer:
            for at in range(0, len(content), 300_000):
                writer.write(memoryview(content)[at : at + 300_000])
            assert writer.finish() == len(content)
            assert writer.digest == hashlib.sha256(content).hexdigest()
        assert same(held(base + b"/a"), content)
        assert facts.umask is not None
        assert stat.S_IMODE(os.stat(base + b"/a").st_mode) == 0o666 & ~facts.umask

    def test_what_is_in_the_way_stays(self, shell: Shell, base: bytes) -> None:
        put(base + b"/a", b"old")
        os.symlink(b"elsewhere", base + b"/l")
        for name in (b"a", b"l"):
            with pytest.raises(FileExistsError):
                write_all(shell, base + b"/" + name, b"new")
        assert held(base + b"/a") == b"old"
        assert not Path(os.fsdecode(base + b"/elsewhere")).exists()

    def test_directory_that_is_not_there_is_told(self, shell: Shell, base: bytes) -> None:
        put(base + b"/f", b"")
        with pytest.raises(FileNotFoundError):
            write_all(shell, base + b"/d/a", b"new")
        with pytest.raises(NotADirectoryError):
            write_all(shell, base + b"/f/a", b"new")

    def test_file_of_another_length_is_not_continued(self, shell: Shell, base: bytes) -> None:
        put(base + b"/a", b"123")
        with pytest.raises(SourceChangedError):
            write_all(shell, base + b"/a", b"4", 2)
        assert held(base + b"/a") == b"123"


class TestPacking:
    def test_what_is_no_regular_file_is_left_out(self, shell: Shell, base: bytes) -> None:
        put(base + b"/a", b"1")
        put(base + b"/z", b"26")
        os.link(base + b"/a", base + b"/a2")
        os.mkdir(base + b"/d")
        os.mkfifo(base + b"/p")
        os.symlink(b"a", base + b"/l")
        os.symlink(b"nowhere", base + b"/n")
        os.mkdir(base + b"/d/e")
        put(base + b"/d/e/f", b"deep")
        packed = shell.pack(base, [b"z", b"gone", b"a", b"a2", b"d", b"p", b"l", b"n", b"d/e/f"], 100)
        assert list(packed) == [(b"z", b"26"), (b"a", b"1"), (b"a2", b"1"), (b"l", b"1"), (b"d/e/f", b"deep")]
        assert packed.complete

    def test_thousands_come_in_order(self, shell: Shell, base: bytes) -> None:
        staging = base + b"/s"
        os.mkdir(staging)
        contents = [os.urandom(number % 3000) for number in range(3000)]
        shell.unpack(staging, ((number, content, None) for number, content in enumerate(contents)))
        names = [b"%d" % number for number in reversed(range(3000))]
        packed = shell.pack(staging, names, 3000)
        assert same(list(packed), list(zip(names, reversed(contents), strict=True)))
        assert packed.complete

    def test_file_above_the_limit_makes_it_incomplete(self, shell: Shell, base: bytes) -> None:
        put(base + b"/a", b"12")
        put(base + b"/b", b"123")
        packed = shell.pack(base, [b"a", b"b"], 2)
        assert list(packed) == [(b"a", b"12")]
        assert not packed.complete

    def test_directory_that_is_not_there_is_told(self, shell: Shell, base: bytes) -> None:
        with pytest.raises(FileNotFoundError):
            list(shell.pack(base + b"/gone", [b"a"], 10))

    def test_packing_can_be_given_up(self, shell: Shell, base: bytes) -> None:
        for number in range(100):
            put(base + b"/%d" % number, bytes(1 << 16))
        packed = shell.pack(base, (b"%d" % number for number in range(100)), 1 << 16)
        assert next(packed)[0] == b"0"
        packed.close()
        assert list(packed) == []
        assert not packed.complete


class TestUnpacking:
    def test_times_are_kept_when_given(self, shell: Shell, base: bytes) -> None:
        facts = shell.probe()
        assert facts.umask is not None
        before = time.time()
        shell.unpack(base, [(5, b"five", 1_234_567_890.9), (7, b"", -5.0)], dated=True)
        shell.unpack(base, [(8, b"eight", 1_234_567_890.0)])
        assert os.stat(base + b"/5").st_mtime == 1_234_567_890
        assert os.stat(base + b"/7").st_mtime == -5
        assert os.stat(base + b"/8").st_mtime >= before - 2
        assert {stat.S_IMODE(os.stat(base + b"/%d" % number).st_mode) for number in (5, 7, 8)} == {
            0o666 & ~facts.umask
        }
        assert {os.stat(base + b"/5").st_uid} == {os.geteuid()}

    def test_error_of_the_source_is_raised(self, shell: Shell, base: bytes) -> None:
        def items() -> Iterator[tuple[int, bytes, float | None]]:
            yield 0, b"x", None
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            shell.unpack(base, items())

    def test_directory_that_is_not_there_is_told(self, shell: Shell, base: bytes) -> None:
        with pytest.raises(FileNotFoundError):
            shell.unpack(base + b"/gone", [(0, b"x" * 4_000_000, None)])


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
        found = {entry.path: entry for entry in shell.find(base, directories=True)}
        assert found[b"f"] == Found(b"f", b"f", b"f", 1 << 40, 1_600_000_000.123456, 1_600_000_000)
        assert found[b"d/f"] == Found(b"d/f", b"f", b"f", 3, -1.5, -2)
        kinds = {path: entry.kind + entry.target for path, entry in found.items()}
        assert kinds == {
            b"d": b"dd",
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

    def test_one_level_only(self, shell: Shell, base: bytes) -> None:
        os.mkdir(base + b"/d")
        put(base + b"/d/f", b"")
        put(base + b"/f", b"")
        assert list(shell.find_names(base, 1)) == [b"f"]
        assert [entry.path for entry in shell.find(base, 1, directories=True)] == [b"d", b"f"]

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
        umask = shell.probe().umask
        assert umask is not None
        put(base + b"/a", b"content")
        os.chmod(base + b"/a", 0o700)
        assert shell.copy(base + b"/a", base + b"/b") == 7
        status = os.stat(base + b"/b")
        assert held(base + b"/b") == b"content"
        assert (status.st_mtime, stat.S_IMODE(status.st_mode)) == (1_600_000_000.5, 0o666 & ~umask)
        with pytest.raises(FileExistsError):
            shell.copy(base + b"/a", base + b"/b")
        with pytest.raises(FileNotFoundError):
            shell.copy(base + b"/gone", base + b"/c")

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
        shell.facts = Facts(digests=dict.fromkeys(ALGORITHMS, many))
        put(base + b"/a", b"content")
        os.mkdir(base + b"/d")
        os.mkfifo(base + b"/p")
        asked = [base + b"/" + name for name in (b"gone", b"d", b"a", b"p")]
        for algorithm in ALGORITHMS:
            expected = hashlib.new(algorithm, b"content").hexdigest()
            assert list(shell.digests(asked, algorithm)) == [(base + b"/a", expected)]

    def test_only_temporary_trees_are_removed(self, shell: Shell, base: bytes) -> None:
        put(base + b"/a", b"")
        for path in (base, base + b"/a", base + b"/.~sb-x/..", base + b"/.~sb-x/", b"/"):
            with pytest.raises(ValueError, match="no temporary name"):
                shell.remove_tree(path)
        assert held(base + b"/a") == b""
