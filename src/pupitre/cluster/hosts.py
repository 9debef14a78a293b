"""Which hosts are alive, judged by what they say and never by their connection."""

import asyncio
from collections.abc import Awaitable, Callable


class Liveness:
    """``on_silence(host)`` is called once when a host has said nothing for ``timeout`` seconds."""

    def __init__(self, timeout: float, on_silence: Callable[[str], Awaitable[None]]) -> None:
        self._timeout = timeout
        self._on_silence = on_silence
        self._heard: dict[str, float] = {}
        self._told: dict[str, tuple[str, int]] = {}
        self._new = asyncio.Event()

    def expect(self, host: str) -> None:
        """Begin to wait for a host that is registered."""
        self._heard[host] = asyncio.get_running_loop().time()
        self._new.set()

    def heard(self, host: str) -> None:
        if host in self._heard:
            self._heard[host] = asyncio.get_running_loop().time()
        else:
            self.expect(host)

    def is_news(self, host: str, run: str, number: int) -> bool:
        """Whether reports up to ``number`` of this run of the host have not all been taken."""
        return self._told.get(host) != (run, number)

    def follows(self, host: str, run: str, number: int) -> bool:
        """Whether report ``number`` is the one right after the last taken, or that one again."""
        return self._told.get(host) in ((run, number - 1), (run, number))

    def took(self, host: str, run: str, number: int) -> None:
        self._told[host] = (run, number)

    async def watch(self) -> None:
        """Run for ever."""
        loop = asyncio.get_running_loop()
        while True:
            self._new.clear()
            if not self._heard:
                await self._new.wait()
                continue
            host, last = min(self._heard.items(), key=lambda item: item[1])
            left = last + self._timeout - loop.time()
            if left > 0:
                await asyncio.sleep(left)
                continue
            del self._heard[host]
            self._told.pop(host, None)
            await self._on_silence(host)
