"""Processes that train together hear of it when one of them ends."""

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

BEAT, SILENCE = 2.0, 30.0  # seconds: between signs of life; without one a process is taken for lost


@dataclass(frozen=True)
class Member:
    """A process of a run: its number, from 0, and its host and process id, in words."""

    number: int
    place: str

    def __str__(self) -> str:
        return f"process {self.number} ({self.place})"


def this_member(number: int) -> Member:
    """Return what the others know of this process."""
    return Member(number, f"{socket.gethostname()}, pid {os.getpid()}")


def leave(message: str) -> None:
    """Say why, and end this process at once: its main thread may wait for a process that is gone for ever."""
    print(f"convunext: {message}", file=sys.stderr, flush=True)
    os._exit(1)


class Heartbeat:
    """A thread that ends this process, with a word, when another of the run ends before the run does.

    Process 0 hears all others, and tells them; they hear process 0. A process that is killed closes its connection; one
    whose host is gone sends no sign of life for half a minute.

    Args:
        member: This process.
        lost: Called with what happened, once, on the thread.

    Attributes:
        agreed: Set when all have agreed to end before the run does.
    """

    def __init__(self, member: Member, lost: Callable[[str], object]) -> None:
        self.member, self.lost, self.agreed = member, lost, False
        self._ended = threading.Event()
        self._sending = threading.Lock()
        self._connections: list[Connection] = []

    def host(self, address: str, others: int, key: bytes) -> tuple[int, Callable[[], None]]:
        """Listen on a free port for so many others that know the key; return port and what waits for them."""
        listener = Listener((address, 0), backlog=others, authkey=key)

        def begin() -> None:
            members: dict[Connection, Member] = {}
            with listener:
                while len(members) < others:
                    connection = listener.accept()
                    members[connection] = connection.recv()
            self._begin(members)

        return int(listener.address[1]), begin

    def join(self, address: str, port: int, key: bytes, place: str) -> None:
        """Connect to process 0, which is at a place, and begin to watch."""
        connection = Client((address, port), authkey=key)
        connection.send(self.member)
        self._begin({connection: Member(0, place)})

    def wait(self) -> None:
        """Return when all processes that this one hears have ended as they should."""
        self._hearing.join()

    def end(self, whole: bool) -> None:
        """Stop watching; if the run has not ended here as it should, the others stop, too."""
        self._ended.set()
        if whole:
            self._tell("done")
        for connection in self._connections:
            connection.close()

    def _begin(self, members: dict[Connection, Member]) -> None:
        self._connections = list(members)
        self._hearing = threading.Thread(target=self._hear, args=(members,), daemon=True)
        self._hearing.start()
        threading.Thread(target=self._beat, daemon=True).start()

    def _tell(self, message: str) -> None:
        with self._sending:
            for connection in self._connections:
                with contextlib.suppress(OSError, ValueError):
                    connection.send(message)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            self._tell("alive")

    def _hear(self, members: dict[Connection, Member]) -> None:
        heard = {connection: time.monotonic() for connection in members}
        while heard and not self._ended.is_set():
            with contextlib.suppress(OSError):  # closed by `end`
                self._hear_once(members, heard)

    def _hear_once(self, members: dict[Connection, Member], heard: dict[Connection, float]) -> None:
        for connection in cast("list[Connection]", wait(list(heard), timeout=BEAT)):
            try:
                message = connection.recv()
            except (EOFError, OSError):
                self._report(f"{members[connection]} ended before the run did")
                return
            if message == "done":
                del heard[connection]
            elif message == "alive":
                heard[connection] = time.monotonic()
            else:
                self._report(message)
                return
        for connection, when in heard.items():
            if time.monotonic() - when > SILENCE:
                self._report(f"{members[connection]} has sent no heartbeat for {SILENCE:g} seconds")
                return

    def _report(self, message: str) -> None:
        if not self._ended.is_set():
            self._ended.set()
            self._tell(message)
            self.lost(message)
