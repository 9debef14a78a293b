"""A host in wrong hands says that it knows more than the cluster: that host waits, and nobody gets what it invents."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import uuid_utils
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pupitre.domain.command import CommandState, RetireHost
from pupitre.domain.order_proof import Ordered, prove, proven
from pupitre.runtime.clock import now_ms
from pupitre.scheduler.commands import SUSPENDED
from pupitre.scheduler.restore import SET_ASIDE
from pupitre.scheduler.state import RestoreConflict, is_suspended
from pupitre.store.audit import AuditLog
from pupitre.wire.messages import Done
from tests.rigs.command_writer import USER
from tests.rigs.hostile_host import HostileHost, hostile_host
from tests.rigs.local_cluster import LocalCluster, eventually, local_cluster
from tests.unit.host.test_warnings import host_where_warned

pytestmark = [pytest.mark.anyio, pytest.mark.attack]
BAD = "host-2"
VICTIM = USER


def invented(proof: str = "", **changes: Any) -> dict[str, Any]:
    """A guest that the cluster has never ordered, for a user who has not asked for it."""
    return {
        "desktop": str(uuid_utils.uuid7()),
        "boot": 1,
        "state": "running",
        "owner": VICTIM,
        "image": "plain",
        "memory_mib": 256,
        "vcpus": 1,
        "proof": proof,
    } | changes


async def confirmed(here: LocalCluster, *words: str) -> dict[str, Any]:
    """`pupitre cluster confirm` as an administrator runs it."""
    command = [sys.executable, "-m", "pupitre", "cluster", "confirm", "--json", *words]
    environment = os.environ | {"PUPITRE_HOME": str(here.settings.home)}
    ran = await asyncio.to_thread(subprocess.run, command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


async def starts_go_on(here: LocalCluster) -> None:
    running = await here.running()
    desktop = await here.status.desktop(running.desktop or "")
    assert desktop is not None
    assert desktop.host == "host-1"


async def actions(here: LocalCluster) -> set[tuple[str, str]]:
    return {(entry.action, entry.subject) for entry in await AuditLog(here.commands.database).search(limit=200)}


async def doubted(here: LocalCluster, host: HostileHost, **heard: Any) -> None:
    """The host has invented that it knows more, and shows its guests."""
    report = host.report(heard={"epoch": now_ms() - 5000, "sequence": 10**6} | heard)
    assert isinstance(await host.say(report), Done)
    await host_where_warned(here, BAD, "knows_more")


async def test_an_invented_heard_sets_only_its_host_aside(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, host_timeout=30) as here:
        await here.add_host("host-1")
        await (await here.add_host(BAD)).crash()
        async with hostile_host(here.settings, BAD) as host:
            await doubted(here, host)
            seen = await here.status.host(BAD)
            assert seen is not None
            assert seen.reason == SET_ASIDE
            await starts_go_on(here)
            await here.stop("cluster")  # and the next process of it thinks alike
            await here.start_cluster()
            await starts_go_on(here)
            await here.outcome(
                await here.ask(RetireHost(host=BAD, unregister=True, at_once=True)), CommandState.SUCCEEDED
            )
            assert await here.status.host(BAD) is None or await host_is_gone(here)
            assert await confirmed(here) == {"hosts": [], "plan": []}
            await starts_go_on(here)


async def host_is_gone(here: LocalCluster) -> bool:
    async def gone() -> bool:
        return await here.status.host(BAD) is None

    await eventually(gone)
    return True


async def test_what_the_cluster_never_signed_is_not_adopted(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, host_timeout=30) as here:
        good = await here.add_host("host-1")
        theirs = await here.running()
        await (await here.add_host(BAD)).crash()
        stolen = good.journal.records[theirs.desktop or ""].proof
        assert stolen
        async with hostile_host(here.settings, BAD) as host:
            forged = str(uuid_utils.uuid7())
            own = prove(Ordered(BAD, 1, 1, forged, 1, VICTIM, "plain", "d", 256, 1), Ed25519PrivateKey.generate())
            guests = [invented(), invented(stolen), invented(own, desktop=forged), invented("AAAA.AAAA")]
            ids = {guest["desktop"] for guest in guests}
            await doubted(here, host)
            assert isinstance(await host.say(host.report(full=True, desktops=guests)), Done)
            found = await confirmed(here, "--yes")
            assert found["hosts"] == [BAD]
            [plan] = found["plan"]
            assert (plan["host"], plan["proven"]) == (BAD, False)
            assert {guest["desktop"] for guest in plan["guests"]} == ids
            assert not any(guest["proven"] for guest in plan["guests"])

            async def said() -> bool:
                await host.say(host.report(full=True, desktops=guests))
                seen = await here.status.host(BAD)
                return seen is not None and [one.code for one in seen.warnings] == ["guests_left"]

            await eventually(said)
            for guest in ids:
                assert await here.status.desktop(guest) is None

            async def named() -> bool:
                return {subject for action, subject in await actions(here) if action == "guest_left"} == ids

            await eventually(named)
            assert not any(action in ("guest_adopted", "guest_removed") for action, _ in await actions(here))
            there = (await here.status.everything()).rows.desktops
            assert [desktop.id for desktop in there if desktop.owner == VICTIM] == [theirs.desktop]
            assert isinstance(await host.say(host.report(full=True)), Done)
            await host_where_warned(here, BAD)


async def test_a_proof_of_this_epoch_is_no_evidence(tmp_path: Path) -> None:
    """It shows no more than what the database holds."""
    async with local_cluster(tmp_path, host_timeout=30) as here:
        bad = await here.add_host(BAD)
        running = await here.running()
        proof = bad.journal.records[running.desktop or ""].proof
        marks = bad.journal.positions
        await bad.crash()
        await here.add_host("host-1")
        async with hostile_host(here.settings, BAD, memory_mib=16) as host:
            heard = {"epoch": marks.epoch, "sequence": marks.sequence, "proof": proof}
            assert isinstance(await host.say(host.report(heard=heard)), Done)
            await starts_go_on(here)
            seen = await here.status.host(BAD)
            assert seen is not None
            assert seen.warnings == ()


@pytest.mark.parametrize("epoch", [2**63 - 1, 1])
async def test_no_invented_epoch_ends_all_later_doubt(tmp_path: Path, epoch: int) -> None:
    async with local_cluster(tmp_path, host_timeout=30) as here:
        await here.add_host("host-1")
        await (await here.add_host(BAD)).crash()
        async with hostile_host(here.settings, BAD) as host:
            await doubted(here, host, epoch=epoch)
            await confirmed(here, "--yes")

            async def believed() -> bool:
                await host.say(host.report(full=True))
                seen = await here.status.host(BAD)
                return seen is not None and seen.warnings == ()

            await eventually(believed)
            await doubted(here, host, epoch=now_ms() + 10**6)
            await starts_go_on(here)


def test_a_proof_is_for_one_host_and_one_key() -> None:
    key = Ed25519PrivateKey.generate()
    ordered = Ordered("host-1", 2**63 - 1, 2**63 - 1, "d" * 36, 1, "o" * 36, "i" * 64, "f" * 64, 2**24, 65535)
    proof = prove(ordered, key)
    assert proven(proof, key.public_key(), host="host-1") == ordered
    assert proven(proof, key.public_key(), host="host-2") is None
    assert proven(proof, Ed25519PrivateKey.generate().public_key(), host="host-1") is None
    for bad in ("", ".", proof[:-4], "A" * 5000, f"{proof}A", proof.replace(".", "")):
        assert proven(bad, key.public_key(), host="host-1") is None
    assert len(proof) < 1024


async def test_two_hosts_that_know_more_stop_every_start(tmp_path: Path) -> None:
    """Two words are evidence that the database is from the past; confirmed for each host, starts go on."""
    async with local_cluster(tmp_path, host_timeout=30) as here:
        for name in ("host-1", BAD):
            await (await here.add_host(name)).crash()
        async with hostile_host(here.settings, "host-1") as one, hostile_host(here.settings, BAD) as two:
            for host in (one, two):
                heard = {"epoch": now_ms() - 5000, "sequence": 10**6}
                assert isinstance(await host.say(host.report(heard=heard)), Done)
                await host_where_warned(here, host.name, "knows_more")
            refused = await here.outcome(await here.boot(), CommandState.FAILED)
            assert refused.fault is not None
            assert refused.fault.reason == SUSPENDED
            assert (await confirmed(here, "host-1"))["hosts"] == ["host-1"]
            assert (await confirmed(here))["hosts"] == [BAD]
            for host in (one, two):

                async def believed(host: HostileHost = host) -> bool:
                    await host.say(host.report(full=True))
                    seen = await here.status.host(host.name)
                    return seen is not None and seen.warnings == ()

                await eventually(believed)


def test_a_proof_or_two_words_are_evidence() -> None:
    word, proof, settled = (
        RestoreConflict(1, False),
        RestoreConflict(1, False, proven=True),
        RestoreConflict(1, True, proven=True),
    )
    assert not is_suspended([])
    assert not is_suspended([word, settled])
    assert is_suspended([proof])
    assert is_suspended([word, word])
