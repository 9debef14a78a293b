"""Passes on to the hosts which sign-ins have ended. It writes nothing down: the endpoint asks until all have heard."""

import asyncio
from collections.abc import Iterable

from pupitre.domain.host import Host, HostState
from pupitre.errors import MessageError, NoAnswer
from pupitre.timings import HOST_REVOCATION_LIMIT
from pupitre.wire.connection import BrokerConnection
from pupitre.wire.messages import Done, Refused, RevokeSessions
from pupitre.wire.subjects import Subjects


async def tell_hosts(
    broker: BrokerConnection, subjects: Subjects, hosts: Iterable[Host], bearers: tuple[str, ...], epoch: int
) -> Done | Refused:
    """Done when every host that may have screens open by these sign-ins has closed them."""
    order = RevokeSessions(bearers=bearers, epoch=epoch)

    async def tell(host: str) -> str | None:
        try:
            await broker.request(subjects.orders(host), order, Done, timeout=HOST_REVOCATION_LIMIT)
        except (NoAnswer, MessageError):
            return host
        return None

    told = await asyncio.gather(*(tell(host.name) for host in hosts if host.state is not HostState.SHUT_DOWN))
    silent = sorted(host for host in told if host)
    if silent:
        return Refused(code="host_silent", reason=f"Not every host has answered: {', '.join(silent)}.")
    return Done()
