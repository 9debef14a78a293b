"""A host's certificate in wrong hands: whatever its reports say costs that host, and no other host, start or row."""

import asyncio
import copy
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uuid_utils
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pupitre.domain.bounds import DAY_MS, MOST_GUESTS
from pupitre.domain.command import CommandState
from pupitre.domain.desktop import Desktop
from pupitre.domain.host import Host
from pupitre.domain.status import HostImage
from pupitre.images.signatures import read_signed
from pupitre.runtime.clock import now_ms
from pupitre.store.audit import AuditEntry, AuditLog
from pupitre.wire.messages import MAX_SIZE, Done, Refused
from tests.rigs.hostile_host import HostileHost, hostile_host
from tests.rigs.local_cluster import LocalCluster, eventually, local_cluster
from tests.unit.host.test_warnings import host_where_warned

pytestmark = pytest.mark.attack
BAD = "host-2"
GUEST = "0190aaaa-0000-7000-8000-0000000000d1"
TEXTS = ["", "\0", "x" * 300, "x" * 70_000, "\u202e\n", "host-1", "🎓" * 200, "plain", GUEST]
NUMBERS = [0, -1, 2**24 + 1, 2**31, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**70, 1.5]
ODD: st.SearchStrategy[Any] = st.sampled_from([*TEXTS, *NUMBERS, None, True, [], {}, [1] * 50])


def full_report(host: HostileHost, own: str) -> dict[str, Any]:
    """Something in every field."""
    image = {"id": "plain", "name": "Plain", "description": "", "state": "ready", "since": 1, "memory_mib": 256,
             "vcpus": 1, "progress": None, "reason": None}  # fmt: skip
    spec = {"id": "plain", "disk": "d" * 64, "disk_format": "raw", "memory_mib": 256, "vcpus": 1}
    signed = read_signed(host.images, "plain")
    assert signed is not None
    return host.report(
        full=True,
        viewer_port=5999,
        desktops=[
            {"desktop": own, "boot": 1, "state": "running", "reason": None, "owner": "u", "image": "plain",
             "memory_mib": 256, "vcpus": 1},
            {"desktop": GUEST, "boot": 1, "state": "failed", "reason": "why"},
        ],
        copies=[{"image": image, "spec": spec, "manifest": signed.digest}],
        manifests=[msgspec.to_builtins(signed)],
        findings=[{"id": str(uuid_utils.uuid7()), "at": now_ms(), "action": "overlay_removed", "desktop": GUEST,
                   "detail": "why"}],
        warnings=[{"code": "clock_ahead", "number": 1, "text": "why"}],
    )  # fmt: skip


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a report something may be changed: in every list and object, and in what they hold."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        if key not in ("type", "host", "run", "number", "heard"):
            yield (*path, key)
            yield from leaves(one, (*path, key))


class Besieged:
    """Two hosts, one of them in wrong hands, and what is true of the other."""

    def __init__(self, here: LocalCluster, hostile: HostileHost) -> None:
        self.here, self.hostile = here, hostile
        self.own = GUEST

    async def open(self) -> None:
        running = await self.here.running()
        assert running.desktop
        self.mine = await self.here.status.desktop(running.desktop)
        self.before = await self.others()

    async def others(self) -> tuple[list[Host], list[Desktop | None], list[HostImage]]:
        changes = await self.here.status.changes(0)
        assert self.mine is not None
        return (
            [host for host in changes.rows.hosts if host.name != BAD],
            [await self.here.status.desktop(self.mine.id)],
            [copy for copy in changes.rows.copies if copy.host != BAD],
        )

    async def say(self, changes: list[tuple[int, Any]]) -> None:
        report = copy.deepcopy(full_report(self.hostile, self.own))
        for where, value in changes:
            places = list(leaves(report))
            *way, last = places[where % len(places)]
            inner = report
            for key in way:
                inner = inner[key]
            inner[last] = copy.deepcopy(value)  # a list put into itself would have no end
        answer = await self.hostile.say(report)
        assert isinstance(answer, Done | Refused)
        await self.hostile.say(full_report(self.hostile, self.own))  # and this one is good again

    async def nothing_else_has_changed(self) -> None:
        """The other host's rows are as they were, and it starts what is asked for."""
        assert await self.others() == self.before
        started = await self.here.running()
        desktop = await self.here.status.desktop(started.desktop or "")
        assert desktop is not None
        assert desktop.host == "host-1"
        await self.here.outcome(await self.here.destroy(desktop.id), CommandState.SUCCEEDED)


@pytest.mark.usefixtures("each_database")
@pytest.mark.timeout(300)
def test_no_report_touches_what_is_another_hosts(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def begin() -> Besieged:
            here = await stack.enter_async_context(local_cluster(tmp_path, host_timeout=300))
            bad = await here.add_host(BAD, memory_mib=16)  # too small for a start, so each goes to the other
            await bad.crash()
            await here.add_host("host-1")
            hostile = await stack.enter_async_context(hostile_host(here.settings, BAD, memory_mib=16))
            made = Besieged(here, hostile)
            await made.open()
            return made

        besieged = runner.run(begin())
        try:

            @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
            @given(st.lists(st.tuples(st.integers(0, 400), ODD), min_size=1, max_size=4))
            def siege(changes: list[tuple[int, Any]]) -> None:
                runner.run(besieged.say(changes))

            siege()
            runner.run(besieged.nothing_else_has_changed())
        finally:
            runner.run(stack.aclose())


@pytest.mark.anyio
async def test_one_bad_part_costs_that_part_of_a_report(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, host_timeout=30) as here:
        only = await here.add_host("host-1")
        await only.crash()
        async with hostile_host(here.settings, "host-1") as host:
            report = full_report(host, GUEST)
            bad = copy.deepcopy(report["copies"][0])
            bad["image"] |= {"id": "huge", "memory_mib": 9999999999999999999999}
            report["copies"].append(bad)
            assert isinstance(await host.say(report), Done)
            warned = await host_where_warned(here, "host-1", "parts_refused")
            assert "copies" in warned.warnings[0].sentence("host-1")
            assert {image.id for image in await here.status.images()} == {"plain"}
            boot = await here.boot(image="plain")  # it is placed there: the host is not set aside
            await here.command_where(boot, lambda command: command.state is CommandState.ACCEPTED)


@pytest.mark.anyio
async def test_more_guests_than_allowed_are_summed_and_dropped(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, host_timeout=30) as here:
        await here.add_host("host-1")
        bad = await here.add_host(BAD)
        await bad.crash()
        async with hostile_host(here.settings, BAD, memory_mib=16) as host:
            guests = [
                {"desktop": str(uuid_utils.uuid7()), "boot": 1, "state": "running"} for _ in range(MOST_GUESTS + 1000)
            ]
            assert isinstance(await host.say(host.report(full=True, desktops=guests)), Done)
            warned = await host_where_warned(here, BAD, "too_many_findings", "too_many_guests")
            assert [one.number for one in warned.warnings if one.code == "too_many_guests"] == [MOST_GUESTS + 1000]
            await here.running()
            log = AuditLog(here.commands.database)

            async def lines() -> int:
                return len(await log.search(action="guest_removed", limit=MOST_GUESTS))

            await eventually(lambda: _is(lines, 500))
            again = [{"desktop": str(uuid_utils.uuid7()), "boot": 1, "state": "running"} for _ in range(900)]
            assert isinstance(await host.say(host.report(full=True, desktops=again)), Done)
            await here.running()
            assert await lines() == 500


async def _is(count: Any, wanted: int) -> bool:
    return bool(await count() == wanted)


@pytest.mark.anyio
async def test_long_run_names_are_refused_and_not_kept(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, host_timeout=30) as here:
        await (await here.add_host("host-1")).crash()
        async with hostile_host(here.settings, "host-1") as host:
            for letter in "abc":
                assert isinstance(await host.say(host.report(run=letter * (MAX_SIZE - 5000))), Refused)
            await host_where_warned(here, "host-1", "reports_refused")


async def findings_of(here: LocalCluster, host: HostileHost, *findings: dict[str, Any]) -> list[AuditEntry]:
    """What of these lines the audit log has, once a good one after them is there."""
    good = {
        "id": str(uuid_utils.uuid7()),
        "at": now_ms(),
        "action": "overlay_removed",
        "desktop": "d",
        "detail": "good",
    }
    for finding in (*findings, good):
        await host.say(host.report(findings=[good | {"id": str(uuid_utils.uuid7())} | finding]))
    log = AuditLog(here.commands.database)

    async def is_there() -> bool:
        return any(entry.detail.endswith(": good") for entry in await log.search())

    await eventually(is_there)
    return [entry for entry in await log.search() if entry.detail.startswith("host-1: ")]


@pytest.mark.anyio
async def test_findings_have_bounded_times_and_known_actions(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, host_timeout=30) as here:
        await (await here.add_host("host-1")).crash()
        async with hostile_host(here.settings, "host-1") as host:
            last = "ffffffff-ffff-ffff-ffff-ffffffffffff"
            found = await findings_of(
                here,
                host,
                {"at": 2**62, "detail": "never"},
                {"action": "sign_in", "detail": "never"},
                {"at": now_ms() + 10 * DAY_MS, "id": last, "detail": "in ten days"},
                {"at": 1, "detail": "in 1970"},
            )
            assert sorted(entry.detail for entry in found) == ["host-1: good", "host-1: in 1970", "host-1: in ten days"]
            for entry in found:
                assert abs(entry.at - now_ms()) < 60_000
                assert entry.id < last  # nothing stays on top for ever


@pytest.mark.anyio
async def test_a_finding_said_twice_is_one_line(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, host_timeout=30) as here:
        await (await here.add_host("host-1")).crash()
        async with hostile_host(here.settings, "host-1") as host:
            twice = {"id": str(uuid_utils.uuid7()), "at": now_ms(), "detail": "twice"}
            found = await findings_of(here, host, twice, twice)
            assert [entry.detail for entry in found].count("host-1: twice") == 1


@pytest.mark.anyio
async def test_a_farewell_or_beat_for_another_host_is_refused(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, host_timeout=30) as here:
        await here.add_host("host-1")
        await (await here.add_host(BAD)).crash()
        async with hostile_host(here.settings, BAD, memory_mib=16) as host:
            for message in (
                {"type": "farewell", "host": "host-1", "run": "r"},
                {"type": "heartbeat", "host": "host-1", "run": "r", "number": 9},
                host.report(host="host-1"),
            ):
                assert isinstance(await host.say(message), Refused)
            await host_where_warned(here, BAD, "reports_refused")
            one = await here.status.host("host-1")
            assert one is not None
            assert (one.state, one.warnings) == ("ready", ())
            running = await here.running()
            assert running.desktop
