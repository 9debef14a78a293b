"""Which hosts are alive, judged by what they say and never by their connection."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from pupitre.errors import Unavailable

log = structlog.get_logger(__name__)


DEAF = 0.2
"""Seconds between two looks whether anybody can be heard again."""
RUNS = 16
"""Earlier runs of a host whose words may still come late."""


class Liveness:
    """``on_silence(host)`` is called once when a host has said nothing for ``timeout`` seconds.

    While ``can_hear()`` is false nobody could have been heard, and silence says nothing.
    """

    def __init__(
        self, timeout: float, on_silence: Callable[[str], Awaitable[None]], can_hear: Callable[[], bool] = lambda: True
    ) -> None:
        self._timeout = timeout
        self._on_silence = on_silence
        self._can_hear = can_hear
        self._heard: dict[str, float] = {}
        self._told: dict[str, tuple[str, int]] = {}
        self._latest: dict[str, tuple[str, int]] = {}
        self._over: dict[str, deque[str]] = {}
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

    def forgive(self) -> None:
        """Begin anew to wait for every host that is waited for: so far nobody could be heard."""
        self._heard = dict.fromkeys(self._heard, asyncio.get_running_loop().time())

    def forget(self, host: str) -> None:
        """It has left: its silence is no news."""
        self._heard.pop(host, None)
        self._told.pop(host, None)

    def is_news(self, host: str, run: str, number: int) -> bool:
        """Whether reports up to ``number`` of this run of the host have not all been taken."""
        told_run, told = self._told.get(host, ("", 0))
        return told_run != run or number > told

    def follows(self, host: str, run: str, number: int) -> bool:
        """Whether every report before ``number`` has been taken."""
        return not self.is_news(host, run, number - 1)

    def is_stale(self, host: str, run: str, number: int) -> bool:
        """Whether one that was made later has been written already, by this run of the host or by the next.

        Even where reports between the two are still to come: an earlier one says of what the later one
        named, or of what has begun since, that it is not there.
        """
        told_run, told = self._told.get(host, ("", 0))
        latest_run, latest = self._latest.get(host, ("", 0))
        overtaken = (told_run == run and number < told) or (latest_run == run and number < latest)
        return overtaken or run in self._over.get(host, ())

    def write(self, host: str, run: str, number: int) -> None:
        """It is being written; what was made before it is stale from here on."""
        latest_run, latest = self._latest.get(host, (run, 0))
        if latest_run != run:
            self._over.setdefault(host, deque(maxlen=RUNS)).append(latest_run)
            latest = 0
        self._latest[host] = (run, max(latest, number))

    def run(self, host: str) -> str:
        """The host's process of which a report was written last; empty where there is none."""
        return self._latest.get(host, ("", 0))[0]

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
            if not self._can_hear():
                while not self._can_hear():  # noqa: ASYNC110 - it comes back rarely, and seconds do not matter
                    await asyncio.sleep(DEAF)
                self.forgive()
                continue
            try:
                await self._on_silence(host)
            except Unavailable as error:
                log.warning("A silent host is not written down yet.", host=host, reason=str(error))
                await asyncio.sleep(1)
                continue
            self._told.pop(host, None)  # when it speaks again, it is asked for everything
            if self._heard.get(host) == last:
                del self._heard[host]
