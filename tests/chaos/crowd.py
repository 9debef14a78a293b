"""People who boot and destroy desktops, some of them twice, some in the middle of a start. Drawn from the seed."""

import asyncio
import random
from collections.abc import Awaitable, Callable

from pupitre.domain.command import Command
from pupitre.errors import Unavailable
from tests.chaos.proxied_cluster import ProxiedCluster, pause

USERS = tuple(f"0190aaaa-0000-7000-8000-0000000000{number:02}" for number in range(10))
PATIENT, HASTY = 30.0, 4.0
"""Seconds that a command may take; a hasty one is often timed out."""


class Crowd:
    """Gives at least ``commands`` commands, evenly over ``seconds``."""

    def __init__(
        self,
        proxied_cluster: ProxiedCluster,
        seed: int,
        commands: int,
        seconds: float,
        *,
        patience: tuple[float, ...] = (PATIENT, PATIENT, HASTY),
    ) -> None:
        self._deployment = proxied_cluster
        self._patience = patience
        self._chooser = random.Random(f"crowd {seed}")
        self._left = commands
        self._pause = seconds / commands
        self._mine: list[Command] = []
        self.given: list[Command] = []

    async def run(self) -> None:
        """Return when everything has been asked for; outcomes may be outstanding."""
        loop = asyncio.get_running_loop()
        at = loop.time()
        while self._left > 0:
            before = self._left
            await self._act(self._chooser.random())
            at += self._pause * (before - self._left)
            await pause(max(0.0, at - loop.time()))

    async def tidy(self) -> None:
        """Destroy what is left, but for a few."""
        await asyncio.gather(*(self._destroy(boot) for boot in self._mine[5:]))
        del self._mine[5:]

    async def _act(self, kind: float) -> None:
        if kind < 0.5 or not self._mine:
            self._mine.append(await self._boot())
        elif kind < 0.6:  # and away with it, before anything can have come of it
            await self._destroy(await self._boot())
        elif kind < 0.7:  # two at once want the same desktop gone
            boot = self._take()
            await asyncio.gather(self._destroy(boot), self._destroy(boot))
        else:
            await self._destroy(self._take())

    def _take(self) -> Command:
        return self._mine.pop(self._chooser.randrange(len(self._mine)))

    async def _boot(self) -> Command:
        self._left -= 1
        seconds = self._chooser.choice(self._patience)
        user = self._chooser.choice(USERS)
        return await self._given(lambda: self._deployment.boot(user=user, timeout=seconds))

    async def _destroy(self, boot: Command) -> None:
        self._left -= 1
        seconds = self._chooser.choice(self._patience)
        await self._given(lambda: self._deployment.destroy(boot.desktop, user=boot.user, timeout=seconds))

    async def _given(self, ask: Callable[[], Awaitable[Command]]) -> Command:
        """Whoever is told that the database is away asks again; the first time may have been taken all the same."""
        while True:
            try:
                command = await ask()
            except Unavailable:
                await pause(0.2)
                continue
            self.given.append(command)
            return command
