"""What the cluster decides, on its real database."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import uuid_utils

from pupitre.domain.command import BootDesktop, CommandState, DestroyDesktop, Order
from pupitre.domain.desktop import DesktopState
from pupitre.domain.host import Host, HostFacts, HostState
from pupitre.domain.image import CopyState, DiskFormat, Image, ImageSpec
from pupitre.domain.overhead import guest_overhead_mib
from pupitre.domain.report import DesktopReport
from pupitre.errors import Unavailable
from pupitre.scheduler.changes import Changes
from pupitre.scheduler.commands import abandon, accept, read_set_of
from pupitre.scheduler.desktops import lose_desktops
from pupitre.scheduler.reports import apply_report, report_read_set
from pupitre.scheduler.state import JournaledCommand, PlacedDesktop, ReadSet
from pupitre.store import cluster_state
from pupitre.store.cluster import ClusterStore
from pupitre.store.sql.dialect import DriverConnection
from pupitre.wire.messages import Report
from tests.rigs import databases

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_database")]

USER = "0190aaaa-0000-7000-8000-000000000001"
IMAGE = Image("plain", "Plain", "", CopyState.READY, 1, memory_mib=256, vcpus=1)
SPEC = ImageSpec("plain", "d", DiskFormat.QCOW2, 256, 1)


def new_id() -> str:
    return str(uuid_utils.uuid7())


def entry(order: Order) -> JournaledCommand:
    return JournaledCommand(new_id(), USER, order, deadline=10_000)


def boot(desktop: str | None = None, image: str = "plain") -> JournaledCommand:
    return entry(BootDesktop(desktop or new_id(), image))


def report(host: str, *desktops: DesktopReport, full: bool = False) -> Report:
    return Report(host=host, run="r", number=1, full=full, port=1, desktops=desktops)


class Cluster:
    """One changes each."""

    def __init__(self, store: ClusterStore) -> None:
        self.store = store

    async def add_host(
        self, name: str = "host-1", memory_mib: int = 1024, accelerator: str = "none", over_books_mib: int = 0
    ) -> None:
        facts = HostFacts(
            memory_mib, 64, 100_000, "simulated", accelerator, "1", guests_mib=0, over_books_mib=over_books_mib
        )

        def add(changes: Changes) -> None:
            changes.put_host(Host(name, HostState.READY, "127.0.0.1", 1, False, 1, facts=facts))
            changes.put_copies(name, [(IMAGE, SPEC)])

        await self.store.change(add)

    async def accept(self, given: JournaledCommand) -> bool:
        needs = read_set_of(given, is_new=True)
        return await self.store.change(partial(accept, command=given, now=1, overcommit=1), needs)

    async def abandon(self, given: JournaledCommand) -> None:
        await self.store.change(partial(abandon, command=given, now=2), read_set_of(given))

    async def report(self, given: Report) -> tuple[frozenset[str], frozenset[str]]:
        found = await self.store.change(partial(apply_report, report=given, now=3), report_read_set(given))
        return found.wake, found.orphans

    async def lose(self, host: str) -> None:
        await self.store.change(partial(lose_desktops, host=host, now=4), ReadSet(hosts=frozenset({host})))

    async def used(self) -> dict[str, tuple[int, int]]:
        """Memory and CPUs, by host."""
        return await self.store.change(
            lambda seen: {name: (host.used_memory_mib, host.used_vcpus) for name, host in seen.hosts.items()}
        )

    async def see(self, given: JournaledCommand, state: DesktopState, boot: int = 1, reason: str | None = None) -> None:
        placed = await self.placed(given)
        assert placed.seen.host is not None
        await self.report(report(placed.seen.host, DesktopReport(placed.seen.id, boot, state, reason)))

    async def check_state(self) -> None:
        """What the cluster has in memory is what its database holds."""
        await self.store.refresh()
        state = self.store.state
        async with self.store.database.write() as connection:
            assert state == await cluster_state.load(connection, state.version)

    async def placed(self, given: JournaledCommand) -> PlacedDesktop:
        assert isinstance(given.order, BootDesktop | DestroyDesktop)
        placed = await self.store.desktop(given.order.desktop)
        assert placed is not None
        return placed

    async def ended(self, given: JournaledCommand) -> tuple[CommandState | None, str | None]:
        held = await self.store.command(given.id)
        assert held is not None
        return held.outcome, held.fault.reason if held.fault else None


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[Cluster]:
    async with databases.database(folder, "cluster") as database:
        found = Cluster(ClusterStore(database))
        yield found
        await found.check_state()


@pytest.mark.parametrize("over_books", [0, 300])
async def test_overhead_of_each_guest_and_measured_excess_count(tmp_path: Path, over_books: int) -> None:
    """Under emulation a guest takes more than its own, and what is measured beyond that is given to nobody."""
    each = IMAGE.memory_mib + guest_overhead_mib("tcg", SPEC.video)
    async with cluster(tmp_path) as one:
        await one.add_host("host-1", 3 * each + 299, "tcg", over_books)
        boots = [boot() for _ in range(5)]
        for given in boots:
            await one.accept(given)
        fitting = 3 if not over_books else 2
        outcomes = [await one.ended(given) for given in boots]
        assert [outcome is None for outcome, _ in outcomes] == [True] * fitting + [False] * (5 - fitting)
        assert "of memory short" in str(outcomes[-1][1])
        assert await one.used() == {"host-1": (fitting * each, fitting)}
        await one.see(boots[0], DesktopState.GONE)
        assert await one.used() == {"host-1": ((fitting - 1) * each, fitting - 1)}


async def test_concurrent_boots_never_exceed_host_memory(tmp_path: Path) -> None:
    """Many boots at once never use more memory than a host has."""
    async with cluster(tmp_path) as one, cluster(tmp_path) as other:  # two connections pools, as of two processes
        await one.add_host("host-1", 1000)  # three fit
        await one.add_host("host-2", 600)  # two fit
        boots = [boot() for _ in range(40)]
        await asyncio.gather(*((one, other)[number % 2].accept(given) for number, given in enumerate(boots)))
        ends = [await one.ended(given) for given in boots]
        assert [outcome for outcome, _ in ends].count(None) == 5
        assert [outcome for outcome, _ in ends].count(CommandState.FAILED) == 35
        assert await one.used() == {"host-1": (768, 3), "host-2": (512, 2)}


async def test_of_64_racers_for_the_last_place_exactly_one_gets_it(tmp_path: Path) -> None:
    async with cluster(tmp_path) as one, cluster(tmp_path) as other:
        await one.add_host("host-1", 256)
        boots = [boot() for _ in range(64)]
        await asyncio.gather(*((one, other)[number % 2].accept(given) for number, given in enumerate(boots)))
        ends = [await one.ended(given) for given in boots]
        assert sorted(str(reason) for _, reason in ends) == [
            *["No host has room: host-1: 256 MiB of memory short."] * 63, "None",
        ]  # fmt: skip
        assert await one.used() == {"host-1": (256, 1)}


async def test_repeated_command_is_taken_once(tmp_path: Path) -> None:
    """A command that comes twice or often at once is taken once."""
    async with cluster(tmp_path) as here:
        await here.add_host()
        given = boot()
        assert sorted(await asyncio.gather(*(here.accept(given) for _ in range(10)))) == [False] * 9 + [True]
        sequence = (await here.placed(given)).seen
        assert not await here.accept(given)
        assert (await here.placed(given)).seen == sequence


async def test_old_command_repeated_among_new_ones(tmp_path: Path) -> None:
    """It was taken for new; its key says that it is not, and of the others nothing is lost or done twice."""
    async with cluster(tmp_path) as here:
        await here.add_host()
        old = boot()
        await here.accept(old)
        await here.see(old, DesktopState.RUNNING)
        stopped = entry(DestroyDesktop((await here.placed(old)).seen.id))
        await here.accept(stopped)
        await here.see(old, DesktopState.GONE)
        group = [boot(), old, stopped, boot()]
        assert await asyncio.gather(*(here.accept(given) for given in group)) == [True, False, False, True]
        assert (await here.placed(old)).seen.state is DesktopState.GONE
        assert await here.used() == {"host-1": (512, 2)}


async def test_a_boot_of_a_desktop_that_is_gone_is_refused(tmp_path: Path) -> None:
    async with cluster(tmp_path) as here:
        await here.add_host()
        first = boot()
        await here.accept(first)
        await here.see(first, DesktopState.GONE)
        again = boot((await here.placed(first)).seen.id)
        await here.accept(again)
        assert await here.ended(again) == (CommandState.FAILED, "There is a desktop with this id already.")
        assert (await here.placed(first)).seen.state is DesktopState.GONE


async def test_a_commit_whose_answer_is_lost_is_known_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path) as here:
        await here.add_host()
        given = boot()
        save = cluster_state.save
        unsure: list[int] = []
        here.store.on_unsure = lambda: unsure.append(here.store.version)

        async def commit_and_fail(connection: DriverConnection, changes: Changes, version: int) -> bool:
            await save(connection, changes, version)
            await connection.commit(())
            raise Unavailable("The answer was lost.")

        with monkeypatch.context() as patch:
            patch.setattr(cluster_state, "save", commit_and_fail)
            with pytest.raises(Unavailable):
                await here.accept(given)
        desktop = (await here.placed(given)).seen.id
        found = await here.store.placed_desktop(desktop)
        assert found is not None
        assert found[1] == SPEC
        assert len(unsure) == 1, "it was written by somebody, as far as we know"
        assert not await here.accept(given)
        assert await here.used() == {"host-1": (256, 1)}
        await here.accept(boot())
        assert len(unsure) == 1


async def test_a_second_boot_of_the_same_desktop_is_refused(tmp_path: Path) -> None:
    async with cluster(tmp_path) as here:
        await here.add_host()
        first = boot()
        await here.accept(first)
        await here.see(first, DesktopState.RUNNING)
        again = boot(first.order.desktop if isinstance(first.order, BootDesktop) else None)
        await here.accept(again)
        assert await here.ended(again) == (CommandState.FAILED, "There is a desktop with this id already.")
        assert (await here.placed(first)).seen.state is DesktopState.RUNNING


async def test_what_is_abandoned_before_it_comes_never_begins(tmp_path: Path) -> None:
    async with cluster(tmp_path) as here:
        await here.add_host()
        given = boot()
        await here.abandon(given)
        assert not await here.accept(given)
        assert await here.ended(given) == (CommandState.CANCELLED, None)


async def test_abandoned_desktop_is_gone_once_host_says_so(tmp_path: Path) -> None:
    """The host has no record of it, so it knows no boot either."""
    async with cluster(tmp_path) as here:
        await here.add_host()
        given = boot()
        await here.accept(given)
        await here.abandon(given)
        assert (await here.placed(given)).seen.state is DesktopState.STOPPING
        await here.see(given, DesktopState.GONE, boot=0)
        assert (await here.placed(given)).seen.state is DesktopState.GONE
        assert await here.store.unsettled() == []


async def test_an_older_boot_says_nothing_of_the_present_one(tmp_path: Path) -> None:
    async with cluster(tmp_path) as here:
        await here.add_host()
        given = boot()
        await here.accept(given)
        await here.see(given, DesktopState.RUNNING)
        for state in (DesktopState.GONE, DesktopState.FAILED, DesktopState.STOPPING):
            await here.see(given, state, boot=0)
        assert (await here.placed(given)).seen.state is DesktopState.RUNNING


async def test_a_host_that_has_yet_to_begin_says_nothing_new(tmp_path: Path) -> None:
    async with cluster(tmp_path) as here:
        await here.add_host()
        given = boot()
        await here.accept(given)
        placed = await here.placed(given)
        sighting = DesktopReport(placed.seen.id, 1, DesktopState.REQUESTED)
        await here.report(report("host-1", sighting, full=True))
        assert (await here.placed(given)).seen.state is DesktopState.REQUESTED
        await here.see(given, DesktopState.BOOTING)
        await here.report(report("host-1", sighting, full=True))
        assert (await here.placed(given)).seen.state is DesktopState.BOOTING


async def test_one_hosts_report_never_touches_another_hosts_desktops(tmp_path: Path) -> None:
    async with cluster(tmp_path) as here:
        await here.add_host("host-1", 300)
        await here.add_host("host-2", 300)
        boots = [boot(), boot()]
        for given in boots:
            await here.accept(given)
            await here.see(given, DesktopState.RUNNING)
        theirs = {(await here.placed(given)).seen.host: (await here.placed(given)).seen.id for given in boots}
        _, orphans = await here.report(report("host-1", DesktopReport(theirs["host-2"], 1, DesktopState.FAILED, "no")))
        assert orphans == {theirs["host-2"]}
        await here.report(report("host-2", full=True))
        states = {(await here.placed(given)).seen.host: (await here.placed(given)).seen.state for given in boots}
        assert states == {"host-1": DesktopState.RUNNING, "host-2": DesktopState.FAILED}


async def test_desktop_missing_in_full_report_is_ended(tmp_path: Path) -> None:
    """What a full report leaves out is gone failed or on its way."""
    async with cluster(tmp_path) as here:
        await here.add_host()
        ordered, running, stopping = boot(), boot(), boot()
        for given in (ordered, running, stopping):
            await here.accept(given)
        await here.see(running, DesktopState.RUNNING)
        await here.abandon(stopping)
        await here.report(report("host-1", full=True))
        assert (await here.placed(ordered)).seen.state is DesktopState.REQUESTED
        failed = (await here.placed(running)).seen
        assert (failed.state, failed.reason) == (
            DesktopState.FAILED, "host-1 no longer has this desktop: it was restarted.",
        )  # fmt: skip
        assert (await here.placed(stopping)).seen.state is DesktopState.GONE


async def test_desktop_ended_inside_is_gone_though_host_forgets(tmp_path: Path) -> None:
    """A desktop that ends from inside is gone even if its host forgets it."""
    async with cluster(tmp_path) as here:
        await here.add_host()
        given = boot()
        await here.accept(given)
        await here.see(given, DesktopState.RUNNING)
        await here.see(given, DesktopState.STOPPING, reason="It was shut down from inside.")
        assert (await here.placed(given)).wanted is DesktopState.GONE
        await here.report(report("host-1", full=True))
        assert (await here.placed(given)).seen.state is DesktopState.GONE


async def test_lost_and_found(tmp_path: Path) -> None:
    async with cluster(tmp_path) as here:
        await here.add_host()
        given, stopping = boot(), boot()
        for each in (given, stopping):
            await here.accept(each)
            await here.see(each, DesktopState.RUNNING)
        await here.abandon(stopping)
        await here.lose("host-1")
        lost = (await here.placed(given)).seen
        assert (lost.state, lost.reason) == (DesktopState.LOST, "host-1 does not answer")
        assert (await here.placed(stopping)).seen.state is DesktopState.STOPPING
        await here.see(given, DesktopState.RUNNING)
        found = (await here.placed(given)).seen
        assert (found.state, found.reason) == (DesktopState.RUNNING, None)


async def test_a_removal_that_fails_is_said_and_goes_on(tmp_path: Path) -> None:
    async with cluster(tmp_path) as here:
        await here.add_host()
        given = boot()
        await here.accept(given)
        await here.see(given, DesktopState.RUNNING)
        destroy = entry(DestroyDesktop((await here.placed(given)).seen.id))
        await here.accept(destroy)
        await here.see(given, DesktopState.FAILED, reason="The disk is in use.")
        assert await here.ended(destroy) == (CommandState.FAILED, "The disk is in use.")
        assert (await here.placed(given)).seen.state is DesktopState.STOPPING
        await here.see(given, DesktopState.GONE)
        assert (await here.placed(given)).seen.state is DesktopState.GONE


async def test_a_failed_desktop_keeps_no_place_once_its_host_is_clean(tmp_path: Path) -> None:
    async with cluster(tmp_path) as here:
        await here.add_host("host-1", 300)
        first, second = boot(), boot()
        await here.accept(first)
        await here.see(first, DesktopState.FAILED, reason="why")
        assert await here.ended(first) == (CommandState.FAILED, "why")
        await here.see(first, DesktopState.GONE)
        assert (await here.placed(first)).seen.state is DesktopState.FAILED
        await here.accept(second)
        assert await here.ended(second) == (None, None)


async def test_epoch_is_later_than_any_before(tmp_path: Path) -> None:
    """Every epoch is later than any before and than a lost databases."""
    async with cluster(tmp_path) as here:
        epochs = [await here.store.begin_epoch(now=now) for now in (1000, 1000, 10, 5000)]
        assert epochs == [1000, 1001, 1002, 5000]


async def test_changes_and_pages_say_the_same(tmp_path: Path) -> None:
    async with cluster(tmp_path) as here:
        await here.add_host("host-1", 1 << 20)
        boots = [boot() for _ in range(20)]
        for given in boots:
            await here.accept(given)
        sequence, rows = await here.store.changes(0)
        assert {desktop.id for desktop in rows.desktops} == {(await here.placed(given)).seen.id for given in boots}
        paged = await here.store.page("desktops", None)
        assert set(paged[1].desktops) == set(rows.desktops)
        assert (await here.store.changes(sequence))[1].desktops == ()
        moved = replace((await here.placed(boots[0])).seen, state=DesktopState.BOOTING, since=3)
        await here.see(boots[0], DesktopState.BOOTING)
        assert (await here.store.changes(sequence))[1].desktops == (moved,)
