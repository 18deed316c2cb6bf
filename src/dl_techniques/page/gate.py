"""What is let through to the page: bounded bodies in bounded time, and no path but those of its own folder."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_CALL = 2**20  # bytes of a request that uploads nothing
SLACK = 2**16  # what a form adds to its file, bytes
MOST_PARTS = 16
MOST_INPUTS = 2  # of a call: file and model
NO_CALL = "Not a call of this page: it must be a JSON object whose data is a list of what the page sends."
# The page asks nobody else for anything: no fonts, no scripts, no counters.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; form-action 'self'"
)
HEADERS = {"content-security-policy": POLICY, "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}


class Gate:
    """Middleware that refuses what the page has no use for, with a sentence.

    Args:
        app: What is behind it.
        folder: The only folder whose files may be named.
        largest_file: Bytes of an upload.
        seconds: Time for a request to arrive.
    """

    def __init__(self, app: ASGIApp, folder: Path, largest_file: int, seconds: float) -> None:
        self.app = app
        self.folder = folder.resolve()
        self.largest_file = largest_file
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        answered = False

        async def send_with_headers(message: Message) -> None:
            nonlocal answered
            answered = True
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            self._check_target(scope["path"])
            if scope["method"] not in ("GET", "HEAD"):
                uploads = Headers(scope=scope).get("content-type", "").startswith("multipart/")
                receive = self._counted(scope, receive, uploads)
                receive = receive if uploads else await self._read_call(receive)
            await self.app(scope, receive, send_with_headers)
        except HTTPException as refusal:
            refused = PlainTextResponse(refusal.detail, refusal.status_code, {"connection": "close"})
            await refused(scope, receive, send_with_headers)
        except Exception:  # of Gradio, for a call that it cannot read
            if answered:
                raise
            refused = PlainTextResponse(NO_CALL, 400, {"connection": "close"})
            await refused(scope, receive, send_with_headers)

    def _check_target(self, target: str) -> None:
        _, named, path = target.partition("/file=")
        if named and not self._owns(path):
            raise HTTPException(403, f"{path}: is not a file of this page.")
        if "/proxy=" in target:
            raise HTTPException(403, "This page fetches no remote files.")

    def _owns(self, path: str) -> bool:
        try:
            return Path(path).is_absolute() and Path(path).resolve().is_relative_to(self.folder)
        except (OSError, ValueError):
            return False

    def _counted(self, scope: Scope, receive: Receive, uploads: bool) -> Receive:
        """Return `receive` that ends a request which is too large, too slow, or of too many parts."""
        end, largest = time.monotonic() + self.seconds, self.largest_file + SLACK if uploads else LARGEST_CALL
        # Gradio deletes what it has of an upload when it gets this, and answers with the message.
        refusal = MultiPartException if uploads else lambda reason: HTTPException(400, reason)
        too_large = f"Larger than the {self.largest_file / 1e6:.0f} MB allowed." if uploads else "Request too large."
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or int(length) > largest:
            raise HTTPException(413, too_large)
        received, parts, tail, complete = 0, 0, b"", False

        async def counted() -> Message:
            nonlocal received, parts, tail, complete
            if complete:
                return await receive()  # when the client goes
            try:
                message = await asyncio.wait_for(receive(), end - time.monotonic())
            except TimeoutError:
                raise refusal(f"Too slow: not received within {self.seconds:g} seconds.") from None
            if message["type"] == "http.disconnect" and uploads:
                raise refusal("Broken off.")
            body = message.get("body", b"")
            complete = not message.get("more_body", False)
            received += len(body)
            if received > largest:
                raise refusal(too_large)
            if uploads:
                seen = tail + body.lower()
                parts += seen.count(b"content-disposition:")
                tail = seen[-len(b"content-disposition:") + 1 :]
                if parts > MOST_PARTS:
                    raise refusal("The form has too many parts.")
            return message

        return counted

    async def _read_call(self, receive: Receive) -> Receive:
        """Read a request that uploads nothing, check the files that it names, and return it to be read again."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise HTTPException(400, "Broken off.")
            body, more = body + message.get("body", b""), message.get("more_body", False)
        try:
            call = json.loads(body or b"{}")
            paths = list(_paths(call))
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, "Not JSON.") from error
        data = call.get("data", [] if "fn_index" in call else [None]) if isinstance(call, dict) else None
        if not isinstance(data, list) or not 0 < len(data) <= MOST_INPUTS:
            raise HTTPException(400, NO_CALL)
        for path in paths:
            if not self._owns(path):
                raise HTTPException(403, f"{path}: was not uploaded to this page.")
        messages: Iterator[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(messages, None) or await receive()

        return replay


def _paths(data: Any) -> Iterator[str]:
    """Yield all that stands under `path` in JSON, at any depth."""
    if isinstance(data, dict):
        if isinstance(path := data.get("path"), str):
            yield path
        data = list(data.values())
    if isinstance(data, list):
        for item in data:
            yield from _paths(item)
