"""The end of a sign-in reaches every host, through outages of any part of the way."""

import time
import uuid
from pathlib import Path

import pytest

from pupitre.domain.ticket import Purpose, Ticket, TicketRefused, sign
from pupitre.pki import issuing
from pupitre.runtime.clock import now_ms
from pupitre.store.revocations import Revocation, Revocations
from tests.rigs.local_cluster import HostRig, LocalCluster, eventually, local_cluster

pytestmark = pytest.mark.anyio


def knows(here: LocalCluster, host: HostRig, bearer: str) -> bool:
    """Whether the host takes no ticket of this sign-in any more."""
    ticket = Ticket(
        id=uuid.uuid4().hex, purpose=Purpose.CONSOLE, user="u", desktop="d", boot=1, host=host.name, address="", port=1,
        expires=time.time() + 30, bearer=bearer, browser=True, until=time.time() + 3600,
    )  # fmt: skip
    signed = sign(ticket, issuing.ensure_ticket_key(here.settings))
    try:
        host.console.sessions.admit(signed, Purpose.CONSOLE)
    except TicketRefused as refusal:
        return "sign-in" in refusal.reason
    return False


def revocation(number: int) -> Revocation:
    return Revocation(f"{number:064x}", now_ms() + 3_600_000)


async def all_told(revocations: Revocations) -> bool:
    return not await revocations.to_send()


async def test_every_host_hears_of_it_and_then_it_is_forgotten(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        hosts = [await here.add_host("host-1"), await here.add_host("host-2")]
        revocations = Revocations(here.commands.database)
        many = [revocation(number) for number in range(20)]
        await revocations.add(many)
        await revocations.add(many[:3])  # the portal died before it forgot these
        await eventually(lambda: all_told(revocations))
        for host in hosts:
            assert all(knows(here, host, one.token_hash) for one in many)
            assert not knows(here, host, revocation(77).token_hash)


async def test_absent_host_hears_of_revocation_on_return(tmp_path: Path) -> None:
    """A host that was away hears of it when it is back and the others at once."""
    async with local_cluster(tmp_path) as here:
        there, away = await here.add_host("host-1"), await here.add_host("host-2")
        revocations = Revocations(here.commands.database)
        await away.crash()
        await revocations.add([revocation(1)])

        async def mark_sent() -> bool:
            return knows(here, there, revocation(1).token_hash)

        await eventually(mark_sent)
        assert await revocations.to_send() == [revocation(1).token_hash]
        await away.start()
        await eventually(lambda: all_told(revocations))
        assert knows(here, away, revocation(1).token_hash)


@pytest.mark.parametrize("part", ["broker", "cluster", "endpoint"])
async def test_nothing_of_it_is_lost_while_a_part_of_the_way_is_away(tmp_path: Path, part: str) -> None:
    async with local_cluster(tmp_path) as here:
        host = await here.add_host()
        revocations = Revocations(here.commands.database)
        await (here.broker.kill() if part == "broker" else here.stop(part))
        await revocations.add([revocation(1)])
        if part == "broker":
            await here.broker.start()
        else:
            await (here.start_cluster() if part == "cluster" else here.start_endpoint())
        await eventually(lambda: all_told(revocations))
        assert knows(here, host, revocation(1).token_hash)


async def test_what_is_past_is_forgotten_with_the_next_that_is_told(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        await here.add_host()
        revocations = Revocations(here.commands.database)
        await revocations.add([Revocation("f" * 64, now_ms() - 1), revocation(1)])
        await eventually(lambda: all_told(revocations))
