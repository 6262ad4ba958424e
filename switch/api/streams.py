# SPDX-License-Identifier: Apache-2.0
"""A capture as an HTTP response: it begins with the request and ends with the client, the port or the count."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from switch import capture as frames
from switch.datapath import Datapath

AT_ONCE = 500  # frames of one reading
SHORTEST, LONGEST = 0.01, 0.2  # seconds between readings that found nothing


class CaptureResponse(StreamingResponse):
    """`number` is a capture that runs; it is stopped here, however the response ends."""

    def __init__(self, datapath: Datapath, number: int, port: str, count: int | None, pcapng: bool) -> None:
        self._datapath = datapath
        self._number = number
        self._pcapng = pcapng
        media = "application/x-pcapng" if pcapng else "application/x-ndjson"
        super().__init__(self._stream(port, count), media_type=media)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await asyncio.to_thread(self._datapath.capture_stop, self._number)

    async def _stream(self, port: str, count: int | None) -> AsyncIterator[bytes]:
        """Frames as they come, and how many were missed whenever that grew."""
        if self._pcapng:
            yield frames.file_header(port)
        missed, pause = 0, SHORTEST
        left = count
        while left is None or left > 0:
            most = AT_ONCE if left is None else min(left, AT_ONCE)
            found, now_missed, attached = await asyncio.to_thread(self._datapath.capture_read, self._number, most)
            if now_missed != missed:
                missed = now_missed
                yield frames.statistics(missed) if self._pcapng else _line({"missed": missed})
            if found:
                if left is not None:
                    left -= len(found)
                yield b"".join(frames.packet(one) if self._pcapng else _line(one.as_dict()) for one in found)
                pause = SHORTEST
                continue
            if not attached:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST)


def _line(item: dict[str, object]) -> bytes:
    return json.dumps(item, separators=(",", ":")).encode() + b"\n"
