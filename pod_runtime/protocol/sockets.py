"""A connection that was Tornado's becomes an asyncio protocol's: no task and no future for each message."""

from __future__ import annotations

import asyncio

from tornado.iostream import IOStream


async def take_over(stream: IOStream, protocol: asyncio.Protocol) -> tuple[asyncio.Transport, bytes]:
    """Move a detached stream's socket to ``protocol``; the stream is closed, the connection is not.

    Gives the transport and the bytes that had been read too early. Raises ``OSError`` (`StreamClosedError` is
    one) when the other side has gone. Not for TLS.
    """
    try:
        # nothing of an answer may be left behind
        await stream.write(b"")
        early = stream.read_bytes(stream.max_buffer_size, partial=True)
        data: bytes = early.result() if early.done() else b""  # type: ignore[attr-defined]
        sock = stream.socket.dup()
    finally:
        stream.close()
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock)
    return transport, data
