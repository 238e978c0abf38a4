"""Local server that responds to completions and chat completions immediately with a fixed text; prints its port."""

from __future__ import annotations

import asyncio
import json
import sys


def answer(path: str, body: dict[str, object], text: str) -> dict[str, object]:
    usage = {"prompt_tokens": 50, "completion_tokens": 100, "total_tokens": 150}
    common = {"id": "x", "created": 0, "model": "instant", "usage": usage}
    if path.endswith("/models"):
        return {"object": "list", "data": [{"id": "instant", "object": "model"}]}
    if path.endswith("/chat/completions"):
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"object": "chat.completion", "choices": [choice], **common}
    stop = body.get("stop") or []
    [*stops] = stop if isinstance(stop, list) else [stop]
    reason = stops[0] if stops else None
    choice = {"index": 0, "text": text + (reason or ""), "finish_reason": "stop", "stop_reason": reason}
    # No usage, so that the server engine does not compare its token counts with the server's.
    return {"object": "text_completion", "choices": [choice], **common, "usage": None}


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while line := await reader.readline():
            path, length = line.split()[1].decode(), 0
            while (header := await reader.readline()).strip():
                name, _, value = header.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            body = json.loads(await reader.readexactly(length)) if length else {}
            content = json.dumps(answer(path, body, sys.argv[1])).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
            writer.write(head.encode() + content)
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
