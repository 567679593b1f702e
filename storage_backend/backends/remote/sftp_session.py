"""SFTPSession: pipelines SFTP requests of many threads over one channel, with only public methods of paramiko.

One of the threads that wait for replies reads the channel for all of them. So a single request needs no thread switch beyond
paramiko's own.
"""

from __future__ import annotations

import os
import stat
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from storage_backend.backends.remote import sftp_packets as packets
from storage_backend.backends.remote.errors import ConnectionLostError, lost
from storage_backend.backends.remote.sftp_packets import (
    MAX_PACKET,
    Fields,
    Reply,
    Request,
    SFTPProtocolError,
    Steps,
)
from storage_backend.threads import run_within_grace, start_daemon

if TYPE_CHECKING:
    import paramiko

T = TypeVar("T")
K = TypeVar("K")

RECEIVE = 256 << 10  # bytes requested from the channel at a time
SEND = 32 << 10  # bytes buffered before they are sent; one SSH packet
PLAIN_LENGTH = 32 << 10  # bytes that every server must accept in a request (the draft, section 3)
SHORTEST_LENGTH = 1 << 10  # bytes; an announced limit of 1 would mean a request per byte
MAX_LENGTH = 255 << 10  # bytes; OpenSSH's own limit, sftp-server.c
OPEN_FILES = 256  # if the server announces no limit; a process usually has 1,024 descriptors (RLIMIT_NOFILE)
MOST_OPEN = 1024  # more is no faster up to a latency of 100 ms
_HEADER = struct.Struct(">IBI")  # length, type, request number


class PendingReply:
    """A sent request, with its reply once that arrives."""

    __slots__ = ("inbox", "reply")

    def __init__(self, inbox: deque[PendingReply] | None = None) -> None:
        self.reply: Reply | None = None
        self.inbox = inbox


OpenPipe: TypeAlias = "Callable[[bytes, Callable[[], bool]], object]"
"""Opens the other end of a pipe in another session, if the given function says it is still blocked; raises if that fails."""


class SFTPSession:
    """An SFTP session.

    OPEN of a pipe (mkfifo(3)) blocks the server's process, and with it all other requests, until someone opens the other end.
    So if STAT and OPEN of a path are sent together and STAT finds a pipe, we fail the OPEN here, and *open_pipe* unblocks the
    server.

    Args:
        channel: runs the SFTP subsystem; its timeout applies to each receive and send.
        open_pipe: for servers with a process per session.

    Attributes:
        unblocks_pipes: whether there is an *open_pipe*. Otherwise callers must STAT a path before they open it.
        extensions: name -> value, as announced by the server.
        read_length: maximum bytes of a READ.
        write_length: maximum bytes of a WRITE.
        at_a_time: maximum number of open files.
        failure: why the session is unusable; None while it works.
    """

    def __init__(self, channel: paramiko.Channel, open_pipe: OpenPipe | None = None) -> None:
        self._channel = channel
        self._open_pipe = open_pipe
        self.unblocks_pipes = open_pipe is not None
        self.failure: ConnectionLostError | None = None
        self._stats: dict[int, tuple[bytes, int]] = {}  # number of a STAT -> path, number of the OPEN
        self._process = os.getpid()
        self._numbers = 0
        self._pending: dict[int, PendingReply | None] = {}
        self._removals: set[int] = set()  # posted requests that must be done before we disconnect
        # Re-entrant: the garbage collector may close a generator, which then posts a request.
        self._sending = threading.RLock()
        self._outbox: list[bytes] = []
        self._outbox_size = 0
        self._turn = threading.Condition(threading.Lock())
        self._reading = False
        self._waiting = 0
        self._pieces: list[bytes] = []
        self._gathered = 0
        self._wanted = 4
        self.extensions = self._handshake()
        self.read_length = self.write_length = PLAIN_LENGTH
        self.at_a_time = OPEN_FILES
        if packets.LIMITS in self.extensions:
            self._ask_limits()

    def run(self, steps: Steps[T]) -> T:
        """Run one operation."""
        try:
            requests = next(steps)
            while True:
                pending = self.begin(requests)
                requests = steps.send([each.reply or self.wait(each) for each in pending])
        except StopIteration as stop:
            value: T = stop.value
            return value
        finally:
            steps.close()
            # Send what the operation posted; its result does not depend on that.
            self.flush()

    def run_many(
        self,
        operations: Iterable[tuple[K, Steps[T]] | None],
        most: int,
        failed: Callable[[K, Exception], object],
    ) -> Iterator[tuple[K, T]]:
        """Run operations concurrently and yield their keys and results as they complete.

        Args:
            operations: keys and operations, taken lazily. None means that none is ready until another completes.
            most: maximum number running at a time.
            failed: called with the key and error of each failed operation; an exception from it ends the run.
        """
        inbox: deque[PendingReply] = deque()
        owners: dict[PendingReply, _Task[K, T]] = {}
        results: deque[tuple[K, T]] = deque()
        source = iter(operations)
        running = 0
        exhausted = False

        def advance(task: _Task[K, T], replies: Sequence[Reply] | None) -> bool:
            """Advance an operation by one step; returns whether it continues."""
            try:
                requests = next(task.steps) if replies is None else task.steps.send(replies)
            except StopIteration as stop:
                results.append((task.key, stop.value))
                return False
            except ConnectionLostError:
                raise
            except Exception as error:  # noqa: BLE001 - of this operation alone; the caller gets it
                failed(task.key, error)
                return False
            task.pending = self._queue(requests, inbox)
            task.missing = len(task.pending)
            owners.update(dict.fromkeys(task.pending, task))
            return True

        try:
            while True:
                while not exhausted and running < most:
                    try:
                        found = next(source)
                    except StopIteration:
                        exhausted = True
                        break
                    if found is None:
                        break
                    running += advance(_Task(*found), None)
                    while results:
                        yield results.popleft()
                self._flush()
                if not running:
                    if exhausted:
                        return
                    continue
                self._wait_for(lambda: bool(inbox))
                while inbox:
                    each = inbox.popleft()
                    task = owners.pop(each)
                    task.missing -= 1
                    if not task.missing:
                        replies = [other.reply for other in task.pending if other.reply is not None]
                        running -= not advance(task, replies)
                while results:
                    yield results.popleft()
        finally:
            for task in set(owners.values()):
                task.steps.close()
            # Send the removals that they posted now, not with the next operation.
            self.flush()

    def begin(self, requests: Iterable[Request]) -> list[PendingReply]:
        """Send requests together."""
        pending = self._queue(requests, None)
        self._flush()
        return pending

    def wait(self, pending: PendingReply) -> Reply:
        """Wait for the reply to a request."""
        if pending.reply is None:
            self._wait_for(lambda: pending.reply is not None)
        assert pending.reply is not None
        return pending.reply

    def post(self, request: Request) -> None:
        """Queue a request to send with later ones, ignoring its reply: to close a handle or remove a temporary file."""
        if self._process == os.getpid():
            with self._sending:
                number = self._add(request, None)
                if request[0] != packets.CLOSE:
                    self._removals.add(number)

    def flush(self) -> None:
        """Send the posted requests, if the session works."""
        with suppress(ConnectionLostError):
            self._flush()

    def close(self) -> None:
        """End the session, after the server has done the posted removals; it then closes all handles."""
        if self._removals and self.failure is None:
            # A server may ignore unread requests when its client disconnects. As replies usually come in order, wait for one.
            run_within_grace(lambda: self.run(_any_request()), "storage-backend-removals")
        self._fail(EOFError("the SFTP session was closed"))
        self._channel.close()

    # Sending

    def _queue(self, requests: Iterable[Request], inbox: deque[PendingReply] | None) -> list[PendingReply]:
        queued = []
        self._check_process()
        with self._sending:
            self._check()
            stat_before: tuple[bytes, int] | None = None
            for request in requests:
                pending = PendingReply(inbox)
                queued.append(pending)
                number = self._add(request, pending)
                if stat_before is not None and request[0] == packets.OPEN:
                    self._stats[stat_before[1]] = stat_before[0], number
                is_stat = self.unblocks_pipes and request[0] == packets.STAT
                stat_before = (request[1], number) if is_stat else None
                if self._outbox_size >= SEND:
                    self._send()
        return queued

    def _add(self, request: Request, pending: PendingReply | None) -> int:
        kind, body = request
        number = self._numbers = (self._numbers + 1) & 0xFFFFFFFF
        self._pending[number] = pending
        self._outbox += (_HEADER.pack(len(body) + 5, kind, number), body)
        self._outbox_size += _HEADER.size + len(body)
        return number

    def _flush(self) -> None:
        if self._outbox and self._process == os.getpid():
            with self._sending:
                self._send()

    def _send(self) -> None:
        """Send the queued requests. The caller holds `_sending`."""
        data = b"".join(self._outbox)
        self._outbox.clear()
        self._outbox_size = 0
        self._check()
        try:
            self._channel.sendall(data)
        except BaseException as error:
            # A packet may be partly sent: the server would read the next one as its rest.
            raise self._fail(error) from error

    # Receiving

    def _wait_for(self, arrived: Callable[[], bool]) -> None:
        """Return once *arrived* is true, reading the channel unless another thread does."""
        self._check_process()
        with self._turn:
            # Increment before the check: the reader examines the count after each reply.
            self._waiting += 1
            try:
                while not (done := arrived()) and self._reading and self.failure is None:
                    self._turn.wait()
            finally:
                self._waiting -= 1
            if done:
                return
            self._check()
            self._reading = True
        try:
            while True:
                self._receive()
                if self._waiting:
                    with self._turn:
                        self._turn.notify_all()
                if arrived():
                    return
        except BaseException as error:
            raise self._fail(error) from error
        finally:
            with self._turn:
                self._reading = False
                self._turn.notify_all()

    def _receive(self) -> None:
        """Read the available bytes, at least one, and deliver the complete replies."""
        piece = self._channel.recv(RECEIVE)
        if not piece:
            raise EOFError("the server closed the SFTP session")
        self._pieces.append(piece)
        self._gathered += len(piece)
        if self._gathered < self._wanted:
            return
        data = b"".join(self._pieces) if len(self._pieces) > 1 else piece
        at, end = 0, len(data)
        self._wanted = 4
        while end - at >= 4:
            size = int.from_bytes(data[at : at + 4])
            if not 5 <= size <= MAX_PACKET:
                # A start-up file of the shell may print into the stream.
                raise SFTPProtocolError(
                    f"the SFTP server sent a packet of {size:,} bytes, or data other than SFTP"
                )
            if end - at < 4 + size:
                self._wanted = 4 + size
                break
            self._deliver(int.from_bytes(data[at + 5 : at + 9]), data[at + 4], data[at + 9 : at + 4 + size])
            at += 4 + size
        self._pieces = [data[at:]] if at < end else []
        self._gathered = end - at

    def _deliver(self, number: int, kind: int, body: bytes) -> None:
        try:
            pending = self._pending.pop(number)
        except KeyError:
            raise SFTPProtocolError("the SFTP server replied to a request that was not sent") from None
        if self._stats and (opening := self._stats.pop(number, None)) is not None:
            self._check_for_pipe(*opening, (kind, body))
        if pending is not None:
            pending.reply = kind, body
            if pending.inbox is not None:
                pending.inbox.append(pending)
        else:
            self._removals.discard(number)

    def _check_for_pipe(self, name: bytes, opening: int, reply: Reply) -> None:
        """Fail the OPEN of a pipe at once, and unblock the server.

        Args:
            name: the path as requests encode it.
            opening: number of the OPEN request.
            reply: to the STAT request.
        """
        try:
            mode = packets.attributes_in(reply).mode
        except (packets.StatusError, SFTPProtocolError):
            return  # the reply to OPEN will raise
        pending = self._pending.get(opening)
        if mode is None or not stat.S_ISFIFO(mode) or pending is None:
            return
        blocked = self._pending[opening] = PendingReply()

        def unblock() -> None:
            assert self._open_pipe is not None
            try:
                self._open_pipe(Fields(name).string(), lambda: blocked.reply is None)
                handle = packets.handle_in(self.wait(blocked))
            except packets.StatusError:
                return
            except Exception:  # noqa: BLE001 - whatever it is, the session is unusable
                self._fail(EOFError("opening a pipe blocks the server"))
                self._channel.close()
                return
            self.post(packets.request(packets.CLOSE, handle))
            self.flush()

        if start_daemon(unblock, "storage-backend-pipe") is None:  # the interpreter is shutting down
            raise EOFError("opening a pipe blocks the server")
        pending.reply = packets.failure_reply("Not a regular file")
        if pending.inbox is not None:
            pending.inbox.append(pending)

    def _fail(self, error: BaseException) -> BaseException:
        """Mark the session as unusable; returns the error to raise."""
        ours = lost(error)
        with self._turn:
            if self.failure is None:
                interrupted = ConnectionLostError("it was interrupted")
                self.failure = ours if isinstance(ours, ConnectionLostError) else interrupted
            self._turn.notify_all()
        return ours

    def _check(self) -> None:
        if self.failure is not None:
            raise ConnectionLostError(str(self.failure), timed_out=self.failure.timed_out)

    def _check_process(self) -> None:
        """Refuse the parent's session in a forked child, before taking a lock that a thread of the parent may have held."""
        if self._process != os.getpid():
            raise ConnectionLostError("the connection is the parent process's")

    # Handshake

    def _handshake(self) -> dict[bytes, bytes]:
        """Exchange versions (section 4 of the draft); returns the server's extensions."""
        self._channel.sendall((5).to_bytes(4) + bytes((packets.INIT,)) + (3).to_bytes(4))
        body = self._receive_exactly(int.from_bytes(self._receive_exactly(4)))
        fields = Fields(body[1:])
        if body[:1] != bytes((packets.VERSION,)) or fields.number() != 3:
            raise SFTPProtocolError("the server does not speak SFTP version 3")
        found = {}
        while fields.left():
            name = fields.string()
            found[name] = fields.string()
        return found

    def _receive_exactly(self, size: int) -> bytes:
        if not size <= MAX_PACKET:
            raise SFTPProtocolError(
                "the server does not speak SFTP; a start-up file of the shell may print something"
            )
        data = b""
        while len(data) < size:
            piece = self._channel.recv(size - len(data))
            if not piece:
                raise EOFError("the server closed the SFTP session during the handshake")
            data += piece
        return data

    def _ask_limits(self) -> None:
        """Request the maximum lengths (OpenSSH's PROTOCOL, 4.8); 0 means no limit."""
        reply = self.wait(self.begin([packets.extended_request(packets.LIMITS)])[0])
        if reply[0] != packets.EXTENDED_REPLY:
            return
        fields = Fields(reply[1])
        fields.long()
        self.read_length = _length(fields.long())
        self.write_length = _length(fields.long())
        # Half of the handles: other users of this session need some.
        self.at_a_time = max(min((fields.long() or MOST_OPEN) // 2, MOST_OPEN), 1)


def _any_request() -> Steps[None]:
    yield [packets.request(packets.LSTAT, b"/")]


def _length(announced: int) -> int:
    return min(max(announced, SHORTEST_LENGTH), MAX_LENGTH) if announced else MAX_LENGTH


class _Task(Generic[K, T]):
    """An operation of `run_many`."""

    __slots__ = ("key", "missing", "pending", "steps")

    def __init__(self, key: K, steps: Steps[T]) -> None:
        self.key = key
        self.steps = steps
        self.pending: list[PendingReply] = []
        self.missing = 0
