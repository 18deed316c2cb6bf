"""Heartbeat of processes that train together: when one of them ends early, the others stop."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import cast

INTERVAL = 2.0  # seconds between two heartbeats
TIMEOUT = 30.0  # seconds without a heartbeat after which a process counts as lost


@dataclass(frozen=True)
class Member:
    """A process of a distributed run: its index, from 0, and its host and process id as text."""

    index: int
    location: str

    def __str__(self) -> str:
        return f"process {self.index} ({self.location})"


def this_member(index: int) -> Member:
    """Return this process as a member of the run."""
    return Member(index, f"{socket.gethostname()}, pid {os.getpid()}")


def abort(message: str) -> None:
    """Print why and end this process at once: its main thread may wait forever for a process that is lost."""
    print(f"convunext: {message}", file=sys.stderr, flush=True)
    os._exit(1)


class Heartbeat:
    """Threads that report when another process of the run ends before the run does.

    Process 0 is connected to all others, receives their heartbeats and forwards a loss; the others are connected to
    process 0 alone. A process that is killed closes its connection; a host that is down sends no heartbeat for
    `TIMEOUT` seconds.

    Args:
        member: This process.
        on_loss: Called once with a description of what happened, on the monitoring thread.

    Attributes:
        stop_agreed: Whether all processes have agreed to end before the run does.
    """

    def __init__(self, member: Member, on_loss: Callable[[str], object]) -> None:
        self.member, self.on_loss, self.stop_agreed = member, on_loss, False
        self._stopped = threading.Event()
        self._sending = threading.Lock()
        self._connections: list[Connection] = []

    def listen(self, address: str, others: int, key: bytes) -> tuple[int, Callable[[], None]]:
        """Listen on a free port; return it and a function that waits for the others, then starts the heartbeat."""
        listener = Listener((address, 0), backlog=others, authkey=key)

        def accept_all() -> None:
            members: dict[Connection, Member] = {}
            with listener:
                while len(members) < others:
                    connection = listener.accept()
                    members[connection] = connection.recv()
            self._start(members)

        return int(listener.address[1]), accept_all

    def connect(self, address: str, port: int, key: bytes, location: str) -> None:
        """Connect to process 0, which runs at `location`, and start the heartbeat."""
        connection = Client((address, port), authkey=key)
        connection.send(self.member)
        self._start({connection: Member(0, location)})

    def wait(self) -> None:
        """Wait until all processes that this one is connected to have completed."""
        self._monitor.join()

    def stop(self, completed: bool) -> None:
        """Stop the heartbeat; unless the run has completed here, the other processes stop, too."""
        self._stopped.set()
        if completed:
            self._send("done")
        for connection in self._connections:
            connection.close()

    def _start(self, members: dict[Connection, Member]) -> None:
        self._connections = list(members)
        self._monitor = threading.Thread(target=self._receive_until_done, args=(members,), daemon=True)
        self._monitor.start()
        threading.Thread(target=self._send_heartbeats, daemon=True).start()

    def _send(self, message: str) -> None:
        with self._sending:
            for connection in self._connections:
                with contextlib.suppress(OSError, ValueError):
                    connection.send(message)

    def _send_heartbeats(self) -> None:
        while not self._stopped.wait(INTERVAL):
            self._send("alive")

    def _receive_until_done(self, members: dict[Connection, Member]) -> None:
        last_heartbeat = {connection: time.monotonic() for connection in members}
        while last_heartbeat and not self._stopped.is_set():
            with contextlib.suppress(OSError):  # closed by `stop`
                self._receive(members, last_heartbeat)

    def _receive(self, members: dict[Connection, Member], last_heartbeat: dict[Connection, float]) -> None:
        for connection in cast("list[Connection]", wait(list(last_heartbeat), timeout=INTERVAL)):
            try:
                message = connection.recv()
            except (EOFError, OSError):
                self._report_loss(f"{members[connection]} ended before the run did")
                return
            if message == "done":
                del last_heartbeat[connection]
            elif message == "alive":
                last_heartbeat[connection] = time.monotonic()
            else:  # process 0 forwards the loss of another process
                self._report_loss(message)
                return
        for connection, received in last_heartbeat.items():
            if time.monotonic() - received > TIMEOUT:
                self._report_loss(f"{members[connection]} has sent no heartbeat for {TIMEOUT:g} seconds")
                return

    def _report_loss(self, message: str) -> None:
        if not self._stopped.is_set():
            self._stopped.set()
            self._send(message)
            self.on_loss(message)
