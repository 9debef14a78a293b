"""The cluster, the broker or a host away, and back: every command has its outcome, nothing is left behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import Executable, Insert, Table, Update
from structlog.testing import capture_logs

from pupitre.config import DatabaseName
from pupitre.domain.command import CommandState
from pupitre.domain.desktop import DesktopState
from pupitre.domain.host import HostState
from pupitre.domain.status import Position, Rows
from pupitre.endpoint.endpoint import WebServerEndpoint
from pupitre.endpoint.status_mirror import Ask, StatusMirror
from pupitre.errors import EndpointError, MessageError, NoAnswer
from pupitre.host.simulation.hypervisor import Behaviour
from pupitre.pki import issuing
from pupitre.store.schema import cluster_desktops
from pupitre.store.sql.engine import open_database
from pupitre.store.status import Status
from pupitre.wire.connection import BrokerConnection
from pupitre.wire.messages import (
    Abandon,
    AnyMessage,
    Changed,
    Done,
    GetPage,
    Page,
    Report,
    StatusPosition,
    StatusQuery,
    Submit,
)
from pupitre.wire.subjects import Subjects
from tests.rigs import databases
from tests.rigs.faulty_database import Faults
from tests.rigs.local_cluster import LocalCluster, eventually, local_cluster, wire_link

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def mirror(here: LocalCluster) -> AsyncIterator[tuple[Status, BrokerConnection, Subjects]]:
    """The status database for writing, and the endpoint's place at the broker."""
    database = open_database(here.settings, "endpoint", "status")
    status = Status(database)
    try:
        async with wire_link(here.settings, "endpoint") as link:
            yield status, link, Subjects(here.settings.cluster)
    finally:
        await database.close()


def pages(link: BrokerConnection, subjects: Subjects) -> Ask:
    async def ask(page: GetPage) -> Page:
        return await link.request(subjects.commands, page, Page, timeout=5)

    return ask


async def test_a_cluster_that_stays_away_is_a_connection_error(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, connection_grace=0.3) as here:
        await here.add_host()
        await here.stop("cluster")
        boot = await here.boot()
        failed = await here.outcome(boot, CommandState.FAILED)
        assert failed.fault is not None
        assert failed.fault.code == "CONNECTION_ERROR"
        await here.wait_link(False)

        await here.start_cluster()
        await here.wait_link(True)
        late = await here.command_where(boot, lambda command: command.late is not None)
        assert (late.state, late.late) == (CommandState.FAILED, CommandState.CANCELLED)
        assert await here.status.desktop(str(boot.desktop)) is None
        await here.running()


async def test_a_cluster_that_is_back_within_the_grace_costs_nothing(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, connection_grace=30) as here:
        await here.add_host()
        await here.stop("cluster")
        boot = await here.boot()
        await here.outcome(boot, CommandState.SENT)
        await here.start_cluster()
        await here.outcome(boot, CommandState.SUCCEEDED)


async def test_what_the_cluster_journalled_unheard_is_undone(tmp_path: Path) -> None:
    """The Submit arrives, its answer does not: CONNECTION_ERROR, and the desktop is taken back."""
    async with local_cluster(tmp_path, connection_grace=0.2) as here:
        host = await here.add_host()
        await here.stop("cluster")
        async with wire_link(here.settings, "cluster") as mute:
            heard: list[Submit] = []

            async def deaf(message: AnyMessage) -> AnyMessage:
                if isinstance(message, Submit):
                    heard.append(message)
                raise NoAnswer("no answer")

            await mute.serve(Subjects(here.settings.cluster).commands, deaf)
            boot = await here.boot()
            await here.outcome(boot, CommandState.FAILED)
            assert heard
        await here.stop("endpoint")
        await here.start_cluster()
        async with wire_link(here.settings, "endpoint") as link:  # the copy that was under way arrives now

            async def sent() -> bool:
                try:
                    await link.request(Subjects(here.settings.cluster).commands, heard[0], Done)
                except NoAnswer:
                    return False
                return True

            await eventually(sent)

        async def runs() -> bool:
            return boot.desktop in await host.hypervisor.guests()

        await eventually(runs)
        await here.start_endpoint()
        await here.wait_desktop(boot, DesktopState.GONE)
        late = await here.command_where(boot, lambda command: command.late is not None)
        assert late.late is CommandState.SUCCEEDED
        assert await host.hypervisor.guests() == {}
        assert host.overlays.all() == set()


async def test_two_timed_out_commands_are_both_abandoned(tmp_path: Path) -> None:
    """A command that times out while the cluster is told of another is told too."""
    async with local_cluster(tmp_path, start=("endpoint",)) as here:
        told: list[str] = []
        second_ended = asyncio.Event()

        async def slow(message: AnyMessage) -> AnyMessage:
            if isinstance(message, StatusQuery):
                return StatusPosition(epoch=1, sequence=0)
            if isinstance(message, Abandon):
                told.append(message.id)
                await second_ended.wait()
            return Done()

        async with wire_link(here.settings, "cluster") as cluster:
            await cluster.serve(Subjects(here.settings.cluster).commands, slow)
            first = await here.boot(timeout=0.2)
            second = await here.boot(timeout=1.0)
            await eventually(lambda: told == [first.id])
            await here.outcome(second, CommandState.TIMED_OUT)
            second_ended.set()
            await eventually(lambda: second.id in told)


async def test_a_start_outlives_the_cluster_process(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        host = await here.add_host(behaviour=Behaviour.SLOW)
        boot = await here.boot()
        await here.wait_desktop(boot, DesktopState.BOOTING)
        await here.stop("cluster")
        host.hypervisor.step()
        await here.start_cluster()
        await here.outcome(boot, CommandState.SUCCEEDED)
        await here.wait_desktop(boot, DesktopState.RUNNING)


async def test_journalled_order_is_given_after_restart(tmp_path: Path) -> None:
    """An order that was journalled but not given is given after a restart."""
    async with local_cluster(tmp_path, host_timeout=30) as here:
        host = await here.add_host()
        await host.crash()  # so that the order cannot be given
        boot = await here.boot()
        await here.outcome(boot, CommandState.ACCEPTED)
        await here.stop("cluster")
        await here.start_cluster()
        await host.start()
        await here.outcome(boot, CommandState.SUCCEEDED)


async def test_the_endpoint_takes_up_what_it_left(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        await here.add_host()
        await here.stop("endpoint")
        boot = await here.boot()
        await here.start_endpoint()
        await here.outcome(boot, CommandState.SUCCEEDED)


async def test_a_broker_that_was_killed_loses_nothing(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, connection_grace=30, host_timeout=30) as here:
        host = await here.add_host(behaviour=Behaviour.SLOW)
        before = await here.boot()
        await here.wait_desktop(before, DesktopState.BOOTING)
        await here.broker.kill()
        await here.wait_link(False)
        host.hypervisor.step()
        meanwhile = await here.boot()
        await here.broker.start()
        await here.wait_link(True)
        await here.outcome(before, CommandState.SUCCEEDED)
        await here.wait_desktop(meanwhile, DesktopState.BOOTING)
        host.hypervisor.step()
        await here.outcome(meanwhile, CommandState.SUCCEEDED)


async def test_a_silent_hosts_desktops_are_lost_and_found_again(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        host, other = await here.add_host("host-1"), await here.add_host("host-2")
        boots = [await here.running() for _ in range(2)]
        theirs = {str(boot.desktop): boot for boot in boots}
        (mine,) = await host.hypervisor.guests()
        (others,) = await other.hypervisor.guests()
        await host.crash()
        await here.wait_host("host-1", HostState.RECONNECTING)
        lost = await here.wait_desktop(theirs[mine], DesktopState.LOST)
        assert lost.reason == "host-1 does not answer"
        untouched = await here.status.desktop(others)
        assert untouched is not None
        assert untouched.state is DesktopState.RUNNING

        await host.start()
        await here.wait_host("host-1", HostState.READY)
        found = await here.wait_desktop(theirs[mine], DesktopState.RUNNING)
        assert found.reason is None


async def test_the_endpoint_says_why_it_cannot_connect(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, start=()) as here:
        endpoint = WebServerEndpoint("main", CollectorRegistry())
        endpoint.connect_to_databases(
            open_database(here.settings, "endpoint", "commands"), open_database(here.settings, "endpoint", "status")
        )
        try:
            with pytest.raises(EndpointError, match=r"did not answer at tls://.* within 0.5 s"):
                await endpoint.connect_to_cluster_server(
                    issuing.directory(here.settings, "endpoint"),
                    here.settings.nats_url,
                    status_update_interval=1,
                    command_timeout_check_interval=1,
                    connection_grace=1,
                    answer_within=0.5,
                )
        finally:
            await endpoint.disconnect_from_cluster_server()


async def test_a_lost_change_is_repaired_by_the_mark(tmp_path: Path) -> None:
    """A cluster's changes reach the endpoint only while it listens; marks tell it what it missed."""
    async with local_cluster(tmp_path, status_update_interval=0.2) as here:
        host = await here.add_host()
        boot = await here.running()
        async with mirror(here) as (status, link, subjects):
            # A mirror that is told nothing, and then only where the cluster stands.
            reader = StatusMirror("elsewhere", status, pages(link, subjects))
            await reader.open()
            marks: list[StatusPosition] = []

            async def told(message: AnyMessage) -> None:
                if isinstance(message, StatusPosition):
                    marks.append(message)
                    await reader.mark(message)

            host.hypervisor.crash(str(boot.desktop), "The guest crashed.")
            await link.serve(subjects.status, told, in_order=True)

            async def repaired() -> bool:
                desktop = await status.desktop(str(boot.desktop))
                return len(marks) > 1 and desktop is not None and desktop.state is DesktopState.FAILED

            await eventually(repaired)
            assert marks[0].sequence > 0


async def test_rows_foretold_by_an_outcome_never_undo_a_newer_change(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        await here.add_host()
        boot = await here.running()
        seen = await here.status.desktop(str(boot.desktop))
        assert seen is not None
        await here.stop("endpoint")
        async with mirror(here) as (status, link, subjects):
            reader = StatusMirror("main", status, pages(link, subjects))
            await reader.open()
            at = await status.position("main")
            failed = Rows(desktops=(replace(seen, state=DesktopState.FAILED),))
            await reader.change(Changed(epoch=at.epoch, after=at.sequence, sequence=at.sequence + 1, rows=failed))
            await reader.apply_early(Rows(desktops=(seen,)), Position(at.epoch, at.sequence))
            now = await status.desktop(seen.id)
            assert now is not None
            assert now.state is DesktopState.FAILED
            await reader.apply_early(Rows(desktops=(seen,)), Position(at.epoch, at.sequence + 2))
            now = await status.desktop(seen.id)
            assert now is not None
            assert now.state is DesktopState.RUNNING


@pytest.mark.parametrize("name", ["commands", "status", "cluster"])
async def test_a_database_that_fails_for_a_while_ends_no_process(tmp_path: Path, name: DatabaseName) -> None:
    async with local_cluster(tmp_path, connection_grace=30, host_timeout=0.6) as here:
        host = await here.add_host(behaviour=Behaviour.SLOW)
        boot = await here.boot()
        await here.wait_desktop(boot, DesktopState.BOOTING)
        async with databases.out_of_order(here.settings.home / "db" / f"{name}.sqlite"):
            with capture_logs() as said:
                host.hypervisor.step()
                await eventually(lambda: host.journal.records[str(boot.desktop)].state is DesktopState.RUNNING)
                await host.crash()
                await here.broker.kill()
                await here.broker.start()
                await eventually(lambda: sum("no such table" in str(entry) for entry in said) >= 2)
        await host.start()
        await here.outcome(boot, CommandState.SUCCEEDED)
        await here.wait_desktop(boot, DesktopState.RUNNING)
        await here.wait_link(True)
        host.hypervisor.behaviour = Behaviour.PROMPT
        await here.running()


async def test_a_command_sent_again_and_again_is_one_command(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        host = await here.add_host()
        boot = await here.running()
        await here.stop("endpoint")
        subject = Subjects(here.settings.cluster).commands
        async with wire_link(here.settings, "endpoint") as link:
            again = Submit(id=boot.id, user=boot.user, order=boot.order, deadline=boot.deadline)
            await asyncio.gather(*(link.request(subject, again, Done) for _ in range(10)))
        await here.start_endpoint()
        await here.running()
        assert len(await host.hypervisor.guests()) == 2


async def test_a_start_whose_commit_was_not_confirmed_goes_on(tmp_path: Path) -> None:
    """The cluster's database has it, and the cluster does not know: the command comes again and is taken up."""
    faults = Faults(lambda written: not faults.lost and any(writes(cluster_desktops, one) for one, _ in written))
    async with local_cluster(tmp_path, start=(), connection_grace=30) as here:
        with faults.injected("cluster"):
            await here.start_cluster()
            await here.start_endpoint()
            await here.wait_link(True)
            await here.add_host()
            await here.running()
        assert faults.lost == 1


def writes(table: Table, statement: Executable) -> bool:
    """Whether it is a change of that table."""
    return isinstance(statement, Insert | Update) and statement.table is table


async def test_a_command_that_was_given_up_unconfirmed_is_undone(tmp_path: Path) -> None:
    """Its CONNECTION_ERROR is written and the answer lost; then the cluster is back, and takes the command."""
    told: list[AnyMessage] = []
    faults = Faults(lambda written: not faults.lost and any(fails(values) for _, values in written))

    def fails(values: object) -> bool:
        changes = values if isinstance(values, list) else []
        return any(change.get("new_state") is CommandState.FAILED for change in changes)

    async def cluster(message: AnyMessage) -> AnyMessage:
        if isinstance(message, StatusQuery):
            return StatusPosition(epoch=1, sequence=0)
        if isinstance(message, Submit) and not faults.lost:
            raise NoAnswer("no answer")
        told.append(message)
        return Done()

    async with (
        local_cluster(tmp_path, start=(), connection_grace=0.1) as here,
        wire_link(here.settings, "cluster") as link,
    ):
        await link.serve(Subjects(here.settings.cluster).commands, cluster)
        with faults.injected("commands"):
            await here.start_endpoint()
            boot = await here.boot()
            await here.outcome(boot, CommandState.FAILED)
            await eventually(lambda: boot.id in {one.id for one in told if isinstance(one, Abandon)})
        assert faults.lost == 1


async def test_a_host_speaks_for_itself_alone(tmp_path: Path) -> None:
    """The broker holds it to its own subjects; what it says there of another host is set aside."""
    async with local_cluster(tmp_path) as here:
        victim = await here.add_host("host-1")
        boot = await here.running()
        await here.add_host("host-2", register=False)
        subjects = Subjects(here.settings.cluster)
        forged = Report(host="host-1", run="forged", number=1, full=True, port=victim.console.port)
        async with wire_link(here.settings, issuing.host_role("host-2")) as link:
            with pytest.raises(MessageError, match="someone else"):
                await link.request(subjects.reports("host-2"), forged, Done)
        seen = await here.status.desktop(str(boot.desktop))
        assert seen is not None
        assert seen.state is DesktopState.RUNNING
