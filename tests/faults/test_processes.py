"""Faults of processes and links, each made on purpose once; numbers are those of the list of faults to survive.

Real processes, simulated guests that outlive their host's process, real disks and databases.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pupitre.domain.command import Command, CommandState
from pupitre.domain.desktop import DesktopState
from pupitre.errors import Unavailable
from pupitre.host.simulation.guest_log import SimulatedGuestLog, guest_log_path
from tests.chaos.proxied_cluster import ProxiedCluster, pause, proxied_cluster, repeating
from tests.chaos.proxy import Way
from tests.rigs.process_cluster import ClusterProcess

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]
HOST = "host-1"
LOOKS = 600
"""Times that a test looks, ten times a second, for what no event tells it."""


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[ProxiedCluster]:
    async with proxied_cluster(tmp_path, [HOST], host_timeout=2.0, connection_grace=20) as made:
        yield made
        wrong = await made.settled()
        assert not wrong, [*map(str, wrong), made.tail()]
        assert not made.ended()


async def eventually(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    for _ in range(LOOKS):
        if await condition():
            return
        await pause(0.1)
    raise AssertionError(what)


def starts(deployment: ProxiedCluster, command: Command) -> int:
    """How often the desktop of this boot was started, over all."""
    lines = SimulatedGuestLog(guest_log_path(deployment.settings.home / "hosts" / HOST)).entries()
    return sum((line.kind, line.desktop) == ("run", command.desktop) for line in lines)


async def is_placed(deployment: ProxiedCluster, command: Command, state: DesktopState) -> bool:
    row = (await deployment.gather()).placed.get(command.desktop or "")
    return row is not None and row.state is state


async def running(deployment: ProxiedCluster) -> Command:
    ended = await deployment.outcome(await deployment.boot())
    assert ended.state is CommandState.SUCCEEDED, ended
    return ended


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_host_process_that_restarts_ends_no_desktop(deployment: ProxiedCluster, number: signal.Signals) -> None:
    """Fault 3."""
    desktop = await running(deployment)
    part = deployment.processes[HOST]
    await (part.kill() if number is signal.SIGKILL else part.stop())
    await part.start()
    assert await deployment.settled() == []
    assert starts(deployment, desktop) == 1


async def test_a_host_that_hangs_is_not_known_and_not_off(deployment: ProxiedCluster) -> None:
    """Fault 4: the embedded driver has no daemon to hang, so its process does."""
    kept, ended = await running(deployment), await running(deployment)
    deployment.processes[HOST].signal(signal.SIGSTOP)
    await eventually(lambda: is_placed(deployment, kept, DesktopState.LOST), "it is lost")
    destroying = await deployment.destroy(ended.desktop, timeout=60)
    await eventually(lambda: is_placed(deployment, ended, DesktopState.STOPPING), "it is wanted gone")
    deployment.processes[HOST].signal(signal.SIGCONT)
    assert (await deployment.outcome(destroying)).state is CommandState.SUCCEEDED
    await eventually(lambda: is_placed(deployment, kept, DesktopState.RUNNING), "it comes back by itself")
    assert starts(deployment, kept) == starts(deployment, ended) == 1


async def test_all_processes_die_at_once(deployment: ProxiedCluster) -> None:
    """Fault 9 as the processes see it: the rest is tried again. `test_faults_power` takes the memory away as well."""
    for _ in range(2):
        boots = await asyncio.gather(*(deployment.boot(timeout=60) for _ in range(8)))
        for part in deployment.processes.values():
            part.signal(signal.SIGKILL)
        for part in deployment.processes.values():
            await part.ended()
        for part in deployment.processes.values():
            await part.start(wait=False)
        assert {command.state for command in await deployment.outcomes(boots)} == {CommandState.SUCCEEDED}
        assert {starts(deployment, boot) for boot in boots} == {1}


async def test_a_cluster_that_was_taken_for_dead_finds_out_and_ends(deployment: ProxiedCluster) -> None:
    """Fault 13: the epoch fences it off at the database and at the hosts."""
    boots = await asyncio.gather(*(deployment.boot(timeout=60) for _ in range(8)))
    old = deployment.processes["cluster"]
    await deployment.freeze("cluster")
    new = await deployment.add_behind_proxy("cluster-2")
    await new.start()
    boots.append(await running(deployment))
    old.signal(signal.SIGCONT)
    assert await old.ended() != 0
    deployment.processes["cluster"] = deployment.processes.pop("cluster-2")
    boots.append(await running(deployment))
    assert {command.state for command in await deployment.outcomes(boots)} == {CommandState.SUCCEEDED}
    assert {starts(deployment, boot) for boot in boots} == {1}


async def test_every_message_comes_more_than_once(deployment: ProxiedCluster) -> None:
    """Fault 14."""
    async with repeating(deployment, 14, share=1.0) as repeater:
        boots = await deployment.outcomes(await asyncio.gather(*(deployment.boot(timeout=60) for _ in range(10))))
        assert {command.state for command in boots} == {CommandState.SUCCEEDED}
        ends = await deployment.outcomes(
            await asyncio.gather(*(deployment.destroy(boot.desktop, user=boot.user, timeout=60) for boot in boots[:5]))
        )
        assert {command.state for command in ends} == {CommandState.SUCCEEDED}
        assert repeater.repeated >= 20
    assert {starts(deployment, boot) for boot in boots[5:]} == {1}


@pytest.mark.parametrize("mute", [HOST, "cluster", "endpoint"])
async def test_an_answer_is_lost_after_the_work_was_done(deployment: ProxiedCluster, mute: str) -> None:
    """Fault 15: it is asked again, and the answer is that of the first time."""
    deployment.proxies[mute].hold(Way.TO_BROKER)
    boot = await deployment.boot(timeout=60)

    async def is_done() -> bool:
        seen = await deployment.gather()
        if mute == HOST:
            return boot.desktop in seen.hosts[HOST].guests
        if mute == "cluster":
            return boot.id in seen.journal
        # What it has not said to anybody can have come to nothing: there is nothing to lose.
        return seen.commands[boot.id].state is not CommandState.QUEUED

    await eventually(is_done, "it is done")
    deployment.proxies[mute].cut()
    deployment.proxies[mute].release()
    assert (await deployment.outcome(boot)).state is CommandState.SUCCEEDED
    assert starts(deployment, boot) == 1


async def test_the_outcome_is_taken_and_its_receipt_is_lost(deployment: ProxiedCluster) -> None:
    """Fault 15, at the end of the way: the cluster says it again, and the command has the one outcome."""
    host = deployment.proxies[HOST]
    host.hold(Way.TO_BROKER)
    boot = await deployment.boot(timeout=60)

    async def is_accepted() -> bool:
        return (await deployment.gather()).commands[boot.id].state is CommandState.ACCEPTED

    await eventually(is_accepted, "the cluster has it")
    deployment.proxies["endpoint"].hold(Way.TO_BROKER)
    host.release()
    ended = await deployment.outcome(boot)
    deployment.proxies["endpoint"].cut()
    deployment.proxies["endpoint"].release()
    assert ended.state is CommandState.SUCCEEDED


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system to fill")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=711", "pupitre-test", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


async def test_databases_and_journal_have_no_disk_left(small_disk: Path) -> None:
    """Fault 16: what cannot be written is refused, what runs goes on, and space alone makes it well again."""
    async with proxied_cluster(small_disk, [HOST]) as deployment:
        desktop = await running(deployment)
        filler = small_disk / "filler"
        with filler.open("wb") as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        with pytest.raises(Unavailable):
            for _ in range(100):  # there may be room in the log's last page
                await deployment.boot(timeout=60)
        assert desktop.desktop in (await deployment.gather()).hosts[HOST].guests
        filler.unlink()
        await running(deployment)
        wrong = await deployment.settled()
        assert not wrong, [*map(str, wrong), deployment.tail()]
        assert not deployment.ended()
        assert starts(deployment, desktop) == 1


@asynccontextmanager
async def disk_errors(part: ClusterProcess, log: Path) -> AsyncIterator[None]:
    """Every sync of the process to its disk fails with EIO, as ``log`` says line by line."""
    tracer = await asyncio.create_subprocess_exec(
        "strace", "-f", "-o", log, "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO",
        "-p", str(part.pid), stderr=subprocess.PIPE,
    )  # fmt: skip
    assert tracer.stderr is not None
    said = await tracer.stderr.readline()
    assert b"attached" in said, said
    try:
        yield
    finally:
        tracer.terminate()
        await tracer.communicate()


async def test_a_disk_that_fails_is_never_taken_for_written(deployment: ProxiedCluster, tmp_path: Path) -> None:
    """Fault 10: who cannot keep a step does not confirm it, and does it once the disk is well again."""
    for name in (HOST, "cluster", "endpoint"):
        log = tmp_path / f"{name}.strace"
        async with disk_errors(deployment.processes[name], log):
            boot = await deployment.boot(timeout=60)

            async def was_refused(log: Path = log) -> bool:
                return log.read_text(errors="replace").count("INJECTED") >= 2

            await eventually(was_refused, "it was tried more than once")
            seen = await deployment.gather()
            unkept = {CommandState.QUEUED, CommandState.SENT}
            assert seen.commands[boot.id].state in unkept | ({CommandState.ACCEPTED} if name == HOST else set())
            if name == "cluster":
                assert boot.id not in seen.journal
            assert name == "endpoint" or starts(deployment, boot) == 0
        ended = await deployment.outcome(boot)
        assert ended.state is CommandState.SUCCEEDED, (name, ended)
        assert starts(deployment, boot) == 1


async def test_a_cluster_that_stands_by_outlives_the_broker(deployment: ProxiedCluster) -> None:
    """Found by seed 77 of the chaos test: it took the broker's return for its own, and ended as one deposed."""
    await running(deployment)
    old = deployment.processes["cluster"]
    new = await deployment.add_behind_proxy("cluster-2")
    await new.start(wait=False)

    async def stands_by() -> bool:
        return "standing_by" in deployment.log.read_text()

    await eventually(stands_by, "it stands by")
    await deployment.processes["nats"].kill()
    await deployment.processes["nats"].start()

    async def is_back() -> bool:
        lines = deployment.log.read_text().splitlines()
        return any(line.startswith("cluster-2") and "broker_back" in line for line in lines)

    await eventually(is_back, "it has the broker back")
    await running(deployment)
    await old.kill()
    deployment.processes["cluster"] = deployment.processes.pop("cluster-2")
    await new.wait_ready()
    await running(deployment)
