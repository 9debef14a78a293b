"""Liveness of hosts, judged by what they say and never by their connection."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from pupitre.cluster.host_session import HostSession
from pupitre.errors import Unavailable
from pupitre.timings import DATABASE_RETRY, RECONNECT_POLL

log = structlog.get_logger(__name__)


class HostSessions:
    """Sessions of all hosts, by name. ``on_silence(host)`` is called once when one says nothing for ``timeout`` s.

    While ``can_hear()`` is false nobody could have been heard, and silence says nothing.
    """

    def __init__(
        self, timeout: float, on_silence: Callable[[str], Awaitable[None]], can_hear: Callable[[], bool] = lambda: True
    ) -> None:
        self._timeout = timeout
        self._on_silence = on_silence
        self._can_hear = can_hear
        self._sessions: dict[str, HostSession] = {}
        self._awaited = asyncio.Event()

    def of(self, host: str) -> HostSession:
        """The session of a host that is registered, or about to be."""
        return self._sessions.setdefault(host, HostSession(host))

    def get(self, host: str) -> HostSession:
        """The session of any host; one of nobody knows nothing, and is not kept."""
        return self._sessions.get(host) or HostSession(host)

    def expect(self, host: str) -> None:
        """The host has just been heard, or begins to be waited for."""
        self.of(host).heard = asyncio.get_running_loop().time()
        self._awaited.set()

    def reset_timers(self) -> None:
        """Begin anew to wait for every host that is waited for: so far nobody could be heard."""
        now = asyncio.get_running_loop().time()
        for session in self._sessions.values():
            session.heard = None if session.heard is None else now

    async def watch(self) -> None:
        """Run for ever."""
        loop = asyncio.get_running_loop()
        while True:
            self._awaited.clear()
            awaited = [(one.heard, name) for name, one in self._sessions.items() if one.heard is not None]
            if not awaited:
                await self._awaited.wait()
                continue
            last, host = min(awaited)
            left = last + self._timeout - loop.time()
            if left > 0:
                await asyncio.sleep(left)
            elif not self._can_hear():
                while not self._can_hear():  # noqa: ASYNC110 - it comes back rarely, and seconds do not matter
                    await asyncio.sleep(RECONNECT_POLL)
                self.reset_timers()
            else:
                await self._tell_silence(host, last)

    async def _tell_silence(self, host: str, last: float) -> None:
        try:
            await self._on_silence(host)
        except Unavailable as error:
            log.warning("host_silence_unwritten", host=host, reason=str(error))
            await asyncio.sleep(DATABASE_RETRY)
            return
        session = self.of(host)
        session.forget_reports()  # when it speaks again, it is asked for everything
        if session.heard == last:
            session.heard = None
