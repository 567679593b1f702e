"""SFTPSession: SFTP requests of many threads over one channel, many at a time, by public calls of paramiko only.

Whoever waits for a reply reads the channel for all that wait, so that a single request costs no switch of threads
beyond paramiko's own.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from storage_backend.backends.remote import sftp_packets as packets
from storage_backend.backends.remote.errors import ConnectionLostError, lost
from storage_backend.backends.remote.sftp_packets import MAX_PACKET, Fields, Reply, Request, SFTPProtocolError
from storage_backend.threads import attend

if TYPE_CHECKING:
    import paramiko

T = TypeVar("T")
K = TypeVar("K")

Steps: TypeAlias = Generator[Sequence[Request], Sequence[Reply], T]
"""One operation: it yields requests that go out together, and is sent their replies in the same order."""

RECEIVE = 256 << 10  # bytes asked of the channel at a time
SEND = 32 << 10  # bytes gathered before they are sent; one packet of SSH
PLAIN_LENGTH = 32 << 10  # bytes that any server must take in a request (the draft, section 3)
SHORTEST_LENGTH = 1 << 10  # bytes; a server that tells of less would have us send a request for each byte
MAX_LENGTH = 255 << 10  # bytes; OpenSSH's own limit, sftp-server.c
OPEN_FILES = 256  # where the server tells no limit; a process has 1,024 descriptors as a rule (RLIMIT_NOFILE)
MOST_OPEN = 1024  # more make nothing faster, up to 100 ms away


class PendingReply:
    """A request that is under way."""

    __slots__ = ("inbox", "reply")

    def __init__(self, inbox: deque[PendingReply] | None = None) -> None:
        self.reply: Reply | None = None
        self.inbox = inbox


Wake: TypeAlias = "Callable[[bytes, Callable[[], bool]], object]"
"""Opens a pipe at its other end, by another session of the same server, if it still has to be; raises if that cannot be done."""


class SFTPSession:
    """An SFTP session.

    To open a pipe (mkfifo(3)) holds a server's process, and all that is asked of it, until someone opens the other end. So where
    STAT and OPEN of a path go out side by side, and the first finds a pipe, the second is refused at once, and *wake* has the
    server go on.

    Args:
        channel: open, with the subsystem started; its timeout is how long a single receive or send may wait.
        wake: for servers that have a process for each session.

    Attributes:
        wakes: whether it does so. Otherwise whoever opens what may be a pipe must have looked before.
        extensions: name -> value, as the server announced them.
        read_length: the most bytes to ask for in a request.
        write_length: the most bytes to send in a request.
        at_a_time: how many files may be open.
    """

    def __init__(self, channel: paramiko.Channel, wake: Wake | None = None) -> None:
        self._channel = channel
        self._wake = wake
        self.wakes = wake is not None
        self._looks: dict[int, tuple[bytes, int]] = {}  # what is looked at, and the number of its opening
        self._process = os.getpid()
        self._numbers = 0
        self._under_way: dict[int, PendingReply | None] = {}
        self._errands: set[int] = set()  # posted, and to be done by the server
        # Re-entrant: collecting garbage may end steps, which then post something.
        self._sending = threading.RLock()
        self._outbox: list[bytes] = []
        self._outbox_size = 0
        self._turn = threading.Condition(threading.Lock())
        self._someone_reads = False
        self._waiting = 0
        self._pieces: list[bytes] = []
        self._gathered = 0
        self._wanted = 4
        self._failure: ConnectionLostError | None = None
        self.extensions = self._introduced()
        self.read_length = self.write_length = PLAIN_LENGTH
        self.at_a_time = OPEN_FILES
        if packets.LIMITS in self.extensions:
            self._ask_limits()

    @property
    def failure(self) -> ConnectionLostError | None:
        """Why the session is of no more use; None as long as it is."""
        return self._failure

    def run(self, steps: Steps[T]) -> T:
        """Carry out one operation."""
        try:
            requests = next(steps)
            while True:
                tickets = self.begin(requests)
                requests = steps.send([self.wait(ticket) for ticket in tickets])
        except StopIteration as stop:
            value: T = stop.value
            return value
        finally:
            steps.close()
            # What was posted last; what came of the operation is known without it.
            self.flush()

    def run_many(
        self,
        operations: Iterable[tuple[K, Steps[T]] | None],
        most: int,
        failed: Callable[[K, Exception], object],
    ) -> Iterator[tuple[K, T]]:
        """Carry out operations, at most *most* at a time, and give their results as they come.

        Args:
            operations: each with a key; taken lazily. None says that there are none until another is done.
            most: how many are under way at a time.
            failed: is given the key and the error of each that fails; what it raises ends all.
        """
        inbox: deque[PendingReply] = deque()
        owners: dict[PendingReply, _Task[K, T]] = {}
        results: deque[tuple[K, T]] = deque()
        source = iter(operations)
        running = 0
        exhausted = False

        def advance(task: _Task[K, T], replies: Sequence[Reply] | None) -> bool:
            """Take one step; whether the operation goes on."""
            try:
                requests = next(task.steps) if replies is None else task.steps.send(replies)
            except StopIteration as stop:
                results.append((task.key, stop.value))
                return False
            except ConnectionLostError:
                raise
            except Exception as error:  # noqa: BLE001 - of this one operation; told to the caller
                failed(task.key, error)
                return False
            task.tickets = self._queue(requests, inbox)
            task.missing = len(task.tickets)
            owners.update(dict.fromkeys(task.tickets, task))
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
                    ticket = inbox.popleft()
                    task = owners.pop(ticket)
                    task.missing -= 1
                    if not task.missing:
                        replies = [other.reply for other in task.tickets if other.reply is not None]
                        running -= not advance(task, replies)
                while results:
                    yield results.popleft()
        finally:
            for task in set(owners.values()):
                task.steps.close()
            # What they remove is not to wait for the next operation.
            self.flush()

    def begin(self, requests: Iterable[Request]) -> list[PendingReply]:
        """Send requests, all together."""
        tickets = self._queue(requests, None)
        self._flush()
        return tickets

    def wait(self, ticket: PendingReply) -> Reply:
        """The reply to a request."""
        if ticket.reply is None:
            self._wait_for(lambda: ticket.reply is not None)
        assert ticket.reply is not None
        return ticket.reply

    def post(self, request: Request) -> None:
        """Have a request sent with the next ones, whose reply nobody waits for: the closing of a handle that was read."""
        if self._process == os.getpid():
            with self._sending:
                number = self._add(request, None)
                if request[0] != packets.CLOSE:
                    self._errands.add(number)

    def flush(self) -> None:
        """Send what was posted, if the session lives."""
        with suppress(ConnectionLostError):
            self._flush()

    def close(self) -> None:
        """End the session; the server closes what is open, and has removed what it was asked to."""
        if self._errands and self._failure is None:
            # A server need not do what it has not read when its client goes. Answers come in order, as a rule.
            attend(lambda: self.run(_nothing()), "storage-backend-errands")
        self._fail(EOFError("the SFTP session was closed"))
        self._channel.close()

    # Sending

    def _queue(self, requests: Iterable[Request], inbox: deque[PendingReply] | None) -> list[PendingReply]:
        tickets = []
        self._check_process()
        with self._sending:
            self._check()
            look: tuple[bytes, int] | None = None
            for request in requests:
                ticket = PendingReply(inbox)
                tickets.append(ticket)
                number = self._add(request, ticket)
                if look is not None and request[0] == packets.OPEN:
                    self._looks[look[1]] = look[0], number
                look = (request[1], number) if self.wakes and request[0] == packets.STAT else None
                if self._outbox_size >= SEND:
                    self._send()
        return tickets

    def _add(self, request: Request, ticket: PendingReply | None) -> int:
        number = self._numbers = (self._numbers + 1) & 0xFFFFFFFF
        self._under_way[number] = ticket
        packet = packets.framed(number, request)
        self._outbox.append(packet)
        self._outbox_size += len(packet)
        return number

    def _flush(self) -> None:
        if self._outbox and self._process == os.getpid():
            with self._sending:
                self._send()

    def _send(self) -> None:
        """Send what is queued. The caller holds the lock."""
        data = b"".join(self._outbox) if len(self._outbox) != 1 else self._outbox[0]
        self._outbox.clear()
        self._outbox_size = 0
        self._check()
        try:
            self._channel.sendall(data)
        except BaseException as error:
            # Part of a packet may be out: what follows would be read as its rest.
            raise self._fail(error) from error

    # Receiving

    def _wait_for(self, arrived: Callable[[], bool]) -> None:
        """Return once *arrived* says so: by reading, or while another thread reads."""
        self._check_process()
        while True:
            with self._turn:
                # Counted before looking: whoever reads looks at the count after each reply.
                self._waiting += 1
                try:
                    while not arrived() and self._someone_reads and self._failure is None:
                        self._turn.wait()
                finally:
                    self._waiting -= 1
                if arrived():
                    return
                self._check()
                self._someone_reads = True
            try:
                # Others that read before may have left packets of ours half done, never whole ones.
                while not arrived():
                    self._receive()
                    if self._waiting:
                        with self._turn:
                            self._turn.notify_all()
            except BaseException as error:
                raise self._fail(error) from error
            finally:
                with self._turn:
                    self._someone_reads = False
                    self._turn.notify_all()

    def _receive(self) -> None:
        """Take in what is there, at least something."""
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
                # What programs print into the stream, a shell's start-up file for one, is not SFTP.
                raise SFTPProtocolError(
                    f"the SFTP server sent a packet of {size:,} bytes, or something else than SFTP"
                )
            if end - at < 4 + size:
                self._wanted = 4 + size
                break
            self._take(int.from_bytes(data[at + 5 : at + 9]), data[at + 4], data[at + 9 : at + 4 + size])
            at += 4 + size
        self._pieces = [data[at:]] if at < end else []
        self._gathered = end - at

    def _take(self, number: int, kind: int, body: bytes) -> None:
        try:
            ticket = self._under_way.pop(number)
        except KeyError:
            raise SFTPProtocolError("the SFTP server answered what nobody asked") from None
        if self._looks and (look := self._looks.pop(number, None)) is not None:
            self._looked(*look, (kind, body))
        if ticket is not None:
            ticket.reply = kind, body
            if ticket.inbox is not None:
                ticket.inbox.append(ticket)
        else:
            self._errands.discard(number)

    def _looked(self, name: bytes, opening: int, reply: Reply) -> None:
        """Have nobody wait for the opening of a pipe.

        Args:
            name: as requests have it.
            opening: the request's number.
            reply: what the server told of it.
        """
        try:
            mode = packets.attributes_in(reply).mode
        except (packets.StatusError, SFTPProtocolError):
            return  # the opening will tell
        ticket = self._under_way.get(opening)
        if mode is None or not stat.S_ISFIFO(mode) or ticket is None:
            return
        held = self._under_way[opening] = PendingReply()

        def wake() -> None:
            assert self._wake is not None
            try:
                self._wake(Fields(name).string(), lambda: held.reply is None)
                handle = packets.handle_in(self.wait(held))
            except packets.StatusError:
                return
            except Exception:  # noqa: BLE001 - whatever it is, the session is of no more use
                self._fail(EOFError("opening a pipe holds the server up"))
                self._channel.close()
                return
            self.post(packets.request(packets.CLOSE, handle))
            self.flush()

        threading.Thread(target=wake, name="storage-backend-wake", daemon=True).start()
        ticket.reply = packets.refusal("Not a regular file")
        if ticket.inbox is not None:
            ticket.inbox.append(ticket)

    def _fail(self, error: BaseException) -> BaseException:
        """Let nobody use the session any more; the error to raise."""
        meant = lost(error)
        with self._turn:
            if self._failure is None:
                self._failure = (
                    meant
                    if isinstance(meant, ConnectionLostError)
                    else ConnectionLostError("it was interrupted")
                )
            self._turn.notify_all()
        return meant

    def _check(self) -> None:
        if self._failure is not None:
            raise ConnectionLostError(str(self._failure), timed_out=self._failure.timed_out)

    def _check_process(self) -> None:
        """Refuse to take part in the parent's session, before any lock that a thread of the parent's may have held."""
        if self._process != os.getpid():
            raise ConnectionLostError("the connection is the parent process's")

    # The beginning

    def _introduced(self) -> dict[bytes, bytes]:
        """Tell our version, and give the server's extensions."""
        self._channel.sendall((5).to_bytes(4) + bytes((packets.INIT,)) + (3).to_bytes(4))
        body = self._exactly(int.from_bytes(self._exactly(4)))
        fields = Fields(body[1:])
        if body[:1] != bytes((packets.VERSION,)) or fields.number() != 3:
            raise SFTPProtocolError("the server does not speak SFTP version 3")
        found = {}
        while fields.left():
            name = fields.string()
            found[name] = fields.string()
        return found

    def _exactly(self, size: int) -> bytes:
        if not size <= MAX_PACKET:
            raise SFTPProtocolError(
                "the server does not speak SFTP: a shell's start-up file may print something"
            )
        data = b""
        while len(data) < size:
            piece = self._channel.recv(size - len(data))
            if not piece:
                raise EOFError("the server closed the SFTP session at once")
            data += piece
        return data

    def _ask_limits(self) -> None:
        """Learn how long requests may be (OpenSSH's PROTOCOL, 4.8); 0 is no limit."""
        reply = self.wait(self.begin([packets.extended_request(packets.LIMITS)])[0])
        if reply[0] != packets.EXTENDED_REPLY:
            return
        fields = Fields(reply[1])
        fields.long()
        self.read_length = _length(fields.long())
        self.write_length = _length(fields.long())
        # Half of them, for those who share the session.
        self.at_a_time = max(min((fields.long() or MOST_OPEN) // 2, MOST_OPEN), 1)


def _nothing() -> Steps[None]:
    yield [packets.request(packets.LSTAT, b"/")]


def _length(told: int) -> int:
    """How much to ask for or send at a time, where the server tells its limit."""
    return min(max(told, SHORTEST_LENGTH), MAX_LENGTH) if told else MAX_LENGTH


class _Task(Generic[K, T]):
    """An operation of `run_many`."""

    __slots__ = ("key", "missing", "steps", "tickets")

    def __init__(self, key: K, steps: Steps[T]) -> None:
        self.key = key
        self.steps = steps
        self.tickets: list[PendingReply] = []
        self.missing = 0
