"""A web application that answers questions with the CLForge in its own pod, over its Unix socket.

usage: app.py TARGET PORT

GET /?q=QUESTION is answered by the model, as plain text and piece by piece; /healthz says that this process lives.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from contextlib import aclosing
from urllib.parse import parse_qs, urlsplit

from clforge import ClforgeError, Client, Delta

_REQUEST_SECONDS = 5.0


async def main(target: str, port: int) -> None:
    """Serves until SIGTERM, all requests by one connection to CLForge."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with Client(target) as client:

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await _answer(client, reader, writer)
            finally:
                writer.close()

        server = await asyncio.start_server(handle, port=port, family=socket.AF_INET)
        sys.stdout.write(f"listening on port {server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await stopped.wait()
        server.close()


async def _answer(client: Client, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _REQUEST_SECONDS)
    url = urlsplit(head.split()[1].decode())
    if url.path == "/healthz":
        writer.write(_head("200 OK"))
        return
    question = parse_qs(url.query).get("q", ["What can you do?"])[0]
    async with aclosing(client.chat(question, max_tokens=200, temperature=0.0)) as events:
        try:
            await anext(events)  # Accepted, or why not
        except ClforgeError as error:
            writer.write(_head("503 Service Unavailable") + f"{error}\n".encode())
            return
        writer.write(_head("200 OK"))
        async for event in events:
            if isinstance(event, Delta):
                writer.write(event.text.encode())
                await writer.drain()  # a reader that has left ends the request


def _head(status: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n".encode()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
