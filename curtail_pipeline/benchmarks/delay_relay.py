"""A relay of TCP connections that delays what it passes on, as a long line does. Linux' netem does so in kernels that
have it.

    python -m curtail_pipeline.benchmarks.delay_relay --delay-ms 75 10.77.1.1:443=127.0.0.1:8443 ...

A new connection costs a round trip before its first byte, as TCP's handshake does. What TCP itself makes of a long line
(its window opens slowly, losses) is not there.
"""

import argparse
import asyncio
import contextlib
from collections.abc import Sequence

PIECE = 1 << 16
UNDER_WAY = 64
"""Pieces that one direction of a connection may have under way: 4 MiB, more than any line here holds."""

Piece = tuple[float, bytes]


async def _take(reader: asyncio.StreamReader, queue: "asyncio.Queue[Piece]", delay_s: float) -> None:
    """Read until the end, which is passed on as an empty piece."""
    clock, data = asyncio.get_running_loop().time, b"begin"
    while data:
        try:
            data = await reader.read(PIECE)
        except OSError:
            data = b""
        await queue.put((clock() + delay_s, data))


async def _give(queue: "asyncio.Queue[Piece]", writer: asyncio.StreamWriter) -> None:
    clock = asyncio.get_running_loop().time
    with contextlib.suppress(OSError):
        while True:
            due, data = await queue.get()
            await asyncio.sleep(due - clock())
            if not data:
                break
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    queue: asyncio.Queue[Piece] = asyncio.Queue(UNDER_WAY)
    taking = asyncio.create_task(_take(reader, queue, delay_s))
    await _give(queue, writer)
    taking.cancel()


async def serve(routes: Sequence[tuple[str, str]], delay_s: float) -> None:
    """Relay until cancelled.

    Args:
        routes: (where to listen, whom to pass on to), each `host:port`.
        delay_s: one way.
    """

    def handler(target: str):  # type: ignore[no-untyped-def]
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(2 * delay_s)
            host, port = target.split(":")
            try:
                far_reader, far_writer = await asyncio.open_connection(host, int(port))
            except OSError:
                writer.close()
                return
            try:
                await asyncio.gather(_pump(reader, far_writer, delay_s), _pump(far_reader, writer, delay_s))
            finally:
                far_writer.close()
                writer.close()

        return handle

    async with contextlib.AsyncExitStack() as stack:
        for listen, target in routes:
            host, port = listen.split(":")
            await stack.enter_async_context(await asyncio.start_server(handler(target), host, int(port), backlog=256))
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("routes", nargs="+", help="LISTEN=TARGET, each host:port")
    parser.add_argument("--delay-ms", type=float, required=True, help="one way")
    arguments = parser.parse_args()
    routes = [(listen, target) for listen, _, target in (route.partition("=") for route in arguments.routes)]
    asyncio.run(serve(routes, arguments.delay_ms / 1000))


if __name__ == "__main__":
    main()
