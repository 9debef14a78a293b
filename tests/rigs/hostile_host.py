"""A host's certificate in wrong hands: a raw client of the broker that says whatever it likes in the host's name."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from nats.aio.client import Client

from pupitre.config import Settings
from pupitre.pki import issuing
from pupitre.wire.messages import AnyMessage, decode, encode
from pupitre.wire.subjects import Subjects, inbox


class HostileHost:
    """`hostile_host` makes it. ``number`` grows as a real host's reports do."""

    def __init__(self, name: str, settings: Settings, client: Client, memory_mib: int) -> None:
        self.name = name
        self.memory_mib = memory_mib
        self.client = client
        self.number = 0
        self.images = settings.images_dir
        self._subjects = Subjects(settings.cluster)

    def report(self, **fields: Any) -> dict[str, Any]:
        """A good report, with anything in the fields that are given."""
        self.number += 1
        return {
            "type": "report",
            "host": self.name,
            "run": "hostile",
            "number": self.number,
            "full": False,
            "port": 4433,
            "facts": {
                "memory_mib": self.memory_mib,
                "vcpus": 64,
                "disk_free_mib": 90000,
                "hypervisor": "test",
                "accelerator": "none",
                "version": "1",
            },
        } | fields

    async def say(self, message: dict[str, Any] | bytes, *, subject: str | None = None) -> AnyMessage:
        """Send it as a report, and the answer."""
        data = message if isinstance(message, bytes) else msgspec.json.encode(message)
        reply = await self.client.request(subject or self._subjects.reports(self.name), data, timeout=5)
        return decode(reply.data)

    async def beat(self, message: AnyMessage) -> None:
        await self.client.publish(self._subjects.heartbeats(self.name), encode(message))


@asynccontextmanager
async def hostile_host(settings: Settings, name: str, *, memory_mib: int = 65536) -> AsyncIterator[HostileHost]:
    """Connected with the certificate of the host ``name``; it claims to have ``memory_mib``."""
    role = issuing.host_role(name)
    certificates = issuing.ensure_certificate(settings, role)
    client = Client()
    await client.connect(
        settings.nats_url, tls=issuing.client_context(certificates, role), inbox_prefix=inbox(role).encode()
    )
    try:
        yield HostileHost(name, settings, client, memory_mib)
    finally:
        await client.close()
