"""Commands that are asked for at the same moment share a transaction, and nothing else."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from pupitre.domain.command import BootDesktop, CommandState, DestroyDesktop
from pupitre.domain.status import ClusterLink
from pupitre.errors import Unavailable
from pupitre.portal.commands import ask
from pupitre.portal.context import new_id, open_portal
from pupitre.portal.http.metrics import Metrics
from pupitre.portal.identity.sessions import Caller
from pupitre.portal.live.batched_reads import BatchedReads
from pupitre.portal.live.status_mirror import StatusMirror
from pupitre.store.status import Status
from tests.rigs.portal_site import open_site

pytestmark = pytest.mark.anyio


class SilentStatus(Status):
    """A status database that does not answer."""

    async def heartbeat(self) -> tuple[int, list[ClusterLink]]:
        raise Unavailable("The status database does not answer.")


async def test_start_that_cannot_be_counted_fails_alone(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site, open_portal(site.settings, Metrics()) as portal:
        portal = replace(
            portal, reads=BatchedReads(portal.commands, StatusMirror(SilentStatus(portal.status.database)))
        )
        student, other = (Caller(site.users[name], "b" * 64, browser=False) for name in ("student", "other"))
        start, stop = await asyncio.gather(
            ask(portal, student, BootDesktop(new_id(), "tiny"), limit=1),
            ask(portal, other, DestroyDesktop(new_id())),
            return_exceptions=True,
        )
        assert isinstance(start, Unavailable)
        assert not isinstance(stop, BaseException)
        assert stop.state is CommandState.QUEUED
        assert await portal.commands.of_user(student.user.id) == []
