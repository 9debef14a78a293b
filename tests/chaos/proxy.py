"""A TCP proxy of ours before the broker: it delays, it loses, and it cuts. TLS passes through it unseen.

While a direction is held, what comes from there waits; a cut while it is held loses it for ever,
so that a request may have been carried out and its reply never heard.
"""

import asyncio
import contextlib
from enum import StrEnum

CHUNK = 1 << 16


class Way(StrEnum):
    TO_BROKER = "to the broker"
    FROM_BROKER = "from the broker"


class Proxy:
    """Listens on ``port`` of loopback (0 takes a free one) from `open` to `close`."""

    def __init__(self, broker_port: int) -> None:
        self._broker_port = broker_port
        self._open = {way: asyncio.Event() for way in Way}
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server
        self.port = 0
        for event in self._open.values():
            event.set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def hold(self, *ways: Way) -> None:
        for way in ways:
            self._open[way].clear()

    def release(self) -> None:
        for event in self._open.values():
            event.set()

    def cut(self) -> None:
        """End every connection with a reset; what is held is lost."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        onward: asyncio.StreamWriter | None = None
        try:
            back, onward = await asyncio.open_connection("127.0.0.1", self._broker_port)
            self._writers.add(onward)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, onward, Way.TO_BROKER))
                both.create_task(self._pass(back, writer, Way.FROM_BROKER))
        except* OSError:
            pass  # the broker is away, or one side has left: the other is cut too
        finally:
            for side in (writer, onward):
                if side is not None:
                    self._writers.discard(side)
                    side.transport.abort()
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        while data := await reader.read(CHUNK):
            await self._open[way].wait()
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof() if writer.can_write_eof() else None
        raise ConnectionResetError
