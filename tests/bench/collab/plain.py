"""Plain pycrdt-websocket behind uvicorn, on uvloop: ``python plain.py PORT``."""

import sys

import uvicorn
import uvloop
from pycrdt.websocket import ASGIServer, WebsocketServer


async def main() -> None:
    rooms = WebsocketServer(auto_clean_rooms=False)
    config = uvicorn.Config(
        ASGIServer(rooms), host="127.0.0.1", port=int(sys.argv[1]), log_level="error",
        ws_per_message_deflate=False, ws_max_size=2**30,
    )  # fmt: skip
    async with rooms:
        await uvicorn.Server(config).serve()


uvloop.run(main())
