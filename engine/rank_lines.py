"""Connections between rank 0 and the others, over which the ranks watch each other.

Lines of JSON over TCP. A connection of its own, beside the process group, tells at once that a
process has ended, on any machine, while a collective would wait for it.
"""

import contextlib
import dataclasses
import json
import os
import secrets
import selectors
import socket
import time

BEAT = 0.5
CONNECT_SECONDS = 20.0


@dataclasses.dataclass(kw_only=True, slots=True)
class Report:
    """What a rank says of itself.

    `step`: finished steps of the run, `finished`: of this process; `usual`: seconds of a step;
    `place`: what it is at, `moves`: how many places it was at since its last step; `end`: None
    while it goes on, then "done" or the exception that ended it.
    """

    rank: int
    host: str
    process: int
    step: int = 0
    finished: int = 0
    usual: float = 0.0
    place: str = "starting"
    moves: int = 0
    paused: bool = False
    end: str | None = None

    @property
    def name(self):
        """The rank, and where to look for it."""
        return f"rank {self.rank} on {self.host} (process {self.process})"


class Connection:
    """One end of a connection; `open` until the other end has gone."""

    def __init__(self, sock):
        # the buffers take minutes of what a stopped peer does not read
        sock.settimeout(2.0)
        self.socket = sock
        self.open = True
        self._rest = b""

    def send(self, **message):
        """Send a message."""
        with self._ending():
            self.socket.sendall(json.dumps(message).encode("ascii") + b"\n")

    def receive(self):
        """Return the messages that have come; call when there is something to read."""
        data = b""
        with self._ending():
            data = self.socket.recv(1 << 16)
        self.open = self.open and bool(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    @contextlib.contextmanager
    def _ending(self):
        try:
            yield
        except OSError:
            self.open = False


class Hub:
    """Rank 0's end of all connections; `address` is (host, port, secret)."""

    def __init__(self, ranks):
        self._missing = ranks - 1
        host = os.environ["MASTER_ADDR"]
        family, *_, found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        # the name need not be that of the interface over which the others come
        local = found[0] if found[0] in ("127.0.0.1", "::1") else ""
        self._server = socket.create_server((local, 0), family=family, backlog=ranks)
        self.address = (host, self._server.getsockname()[1], secrets.token_hex(16))
        self._peers = {}
        self._selector = selectors.DefaultSelector()

    def connect(self, own, judge):
        """Wait for the others and exchange reports; return whether all came."""
        until = time.monotonic() + CONNECT_SECONDS
        while self._missing and (left := until - time.monotonic()) > 0:
            self._server.settimeout(left)
            with contextlib.suppress(TimeoutError):
                self._greet(Connection(self._server.accept()[0]), own, judge)
        self._server.close()
        return not self._missing

    def _greet(self, peer, own, judge):
        try:
            greeting = peer.receive()[0]
            known = greeting["secret"] == self.address[2]
        except (ValueError, LookupError, TypeError):
            known = False
        if not known:
            # somebody else who found the port
            peer.socket.close()
            return
        report = Report(**greeting["report"])
        judge.hear(report, time.monotonic())
        peer.send(report=dataclasses.asdict(own))
        self._peers[report.rank] = peer
        self._selector.register(peer.socket, selectors.EVENT_READ, report.rank)
        self._missing -= 1

    def say(self, own, judge):
        """Tell this rank's report to the others and to the judge."""
        judge.hear(own, time.monotonic())
        self._send(report=dataclasses.asdict(own))

    def listen(self, judge):
        """Tell the judge what comes within a BEAT, or until somebody ends."""
        until = time.monotonic() + BEAT
        while (left := until - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                rank, peer = key.data, self._peers[key.data]
                for message in peer.receive():
                    judge.hear(Report(**message["report"]), time.monotonic())
                if not peer.open:
                    self._selector.unregister(peer.socket)
                    judge.lose(rank)
                    until = 0.0

    def tell(self, verdict):
        """Send the verdict to the others."""
        self._send(verdict=verdict)

    def _send(self, **message):
        for peer in self._peers.values():
            if peer.open:
                peer.send(**message)

    def may_close(self):
        """Whether nobody needs this rank's word any more: all have gone."""
        return not self._selector.get_map()

    def close(self):
        """Close all connections."""
        for peer in self._peers.values():
            peer.socket.close()
        self._selector.close()


class Line:
    """Another rank's end of its connection to rank 0."""

    def __init__(self, address):
        self._host, self._port, self._secret = address
        self._hub = None

    def connect(self, own, judge):
        """Connect and exchange reports; return whether that worked."""
        try:
            found = socket.create_connection((self._host, self._port), timeout=CONNECT_SECONDS / 2)
        except OSError:
            return False
        self._hub = Connection(found)
        self._hub.send(secret=self._secret, report=dataclasses.asdict(own))
        self._hub.socket.settimeout(CONNECT_SECONDS / 2)
        for message in self._hub.receive():
            judge.hear(Report(**message["report"]), time.monotonic())
        self._hub.socket.settimeout(2.0)
        return self._hub.open

    def say(self, own, judge):
        """Tell this rank's report to rank 0."""
        self._hub.send(report=dataclasses.asdict(own))

    def listen(self, judge):
        """Tell the judge what rank 0 says of itself within a BEAT; return its verdict, if any."""
        until = time.monotonic() + BEAT
        with selectors.DefaultSelector() as selector:
            selector.register(self._hub.socket, selectors.EVENT_READ)
            while self._hub.open and (left := until - time.monotonic()) > 0:
                for message in self._hub.receive() if selector.select(left) else ():
                    if "verdict" in message:
                        return message["verdict"]
                    judge.hear(Report(**message["report"]), time.monotonic())
        if not self._hub.open:
            judge.lose(0)
        return None

    def tell(self, verdict):
        """Nobody hangs on this rank's word."""

    def may_close(self):
        """Whether rank 0 needs this rank's word no more: it has just had the last."""
        return True

    def close(self):
        """Close the connection."""
        if self._hub is not None:
            self._hub.socket.close()
