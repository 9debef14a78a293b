"""Says again what others have said: copies of messages, with their reply subjects, some at once and some late.

A client of the broker with a certificate and with rights that no role of ours has.
"""

import asyncio
import json
import random
from pathlib import Path

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from pupitre.config import Settings
from pupitre.pki import issuing

ROLE = "host-repeater"
LATEST = 3.0
"""Seconds after which a copy may still come."""


def allow(config: Path) -> None:
    """Give the repeater every right in the broker's configuration.

    And everybody the right to answer each copy: the broker counts answers by reply subject, and once it has
    seen one twice, it may refuse the one answer that it allows.
    """
    document = json.loads(config.read_text())
    for user in document["authorization"]["users"]:
        user["permissions"]["allow_responses"]["max"] = 8
    everything = {"publish": {"allow": [">"]}, "subscribe": {"allow": [">"]}}
    document["authorization"]["users"].append({"user": issuing.nats_user(ROLE), "permissions": everything})
    config.write_text(json.dumps(document))


class Repeater:
    """From `open` to `close`; ``share`` of all messages come again, once or twice."""

    def __init__(self, settings: Settings, chooser: random.Random, share: float) -> None:
        self._settings = settings
        self._chooser = chooser
        self._share = share
        self._client = Client()
        self.repeated = 0

    async def open(self) -> None:
        async def ignore(_error: Exception) -> None:
            """The broker comes and goes here."""

        certificates = issuing.ensure_certificate(self._settings, ROLE)
        await self._client.connect(
            self._settings.nats_url.split(","),
            name=ROLE,
            tls=issuing.client_context(certificates, ROLE),
            no_echo=True,  # a copy of a copy would never end
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            error_cb=ignore,
        )
        await self._client.subscribe(f"pupitre.v1.{self._settings.cluster}.>", cb=self._hear)
        await self._client.flush()

    async def close(self) -> None:
        await self._client.close()

    async def _hear(self, message: Msg) -> None:
        if self._chooser.random() >= self._share:
            return
        for _ in range(self._chooser.choice((1, 1, 2))):
            wait = self._chooser.choice((0.0, 0.0, self._chooser.uniform(0, LATEST)))
            asyncio.get_running_loop().call_later(wait, self._say, message)

    def _say(self, message: Msg) -> None:
        if self._client.is_connected:
            self.repeated += 1
            asyncio.ensure_future(self._publish(message))  # noqa: RUF006 - its end is of no interest

    async def _publish(self, message: Msg) -> None:
        try:
            await self._client.publish(message.subject, message.data, reply=message.reply)
        except NatsError:
            return
