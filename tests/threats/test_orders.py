"""Threat 13: the cluster is in wrong hands, and says to a host what it likes. The host checks everything again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pupitre.domain.desktop import DesktopState
from pupitre.images.store import ImageStore
from pupitre.wire.messages import AnyMessage, Done, EnsureDesktop, Refused, decode, encode
from pupitre.wire.subjects import Subjects
from tests import ROOT
from tests.rigs.command_writer import new_id
from tests.rigs.local_cluster import IMAGE, eventually, local_cluster, wire_link

pytestmark = pytest.mark.anyio

GOLDEN = ROOT / "tests/golden/v1"
VERBS = {"describe", "end_sign_ins", "ensure_desktop", "ensure_gone", "power_off"}
"""All that a host does for the cluster. A verb more is a decision, made here too."""
ORDERS = Subjects("main").orders("host-1")
CANARY = "nobody-reads-or-removes-me"
PATHS = ("../canary", "../../../canary", "/etc/shadow", "canary", "a/../../canary", "", ".", "x" * 64, "-f", "%2e%2e")


async def test_host_refuses_all_but_a_closed_list_of_verbs(tmp_path: Path) -> None:
    """Every message there is, as its golden file has it."""
    async with local_cluster(tmp_path, start=()) as here:
        await here.add_host(register=False)
        async with wire_link(here.settings, "cluster") as cluster:
            for path in sorted(GOLDEN.glob("*.json")):
                data = path.read_bytes()
                if json.loads(data)["type"] in VERBS | {"bundle"}:
                    continue
                answer = decode((await cluster._client.request(ORDERS, data, timeout=10)).data)
                assert isinstance(answer, Refused), path.name
        assert not here.hosts[0].journal.records


def hostile_orders(good: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Orders like ``good`` with one hostile field each, as no code of ours would write them."""
    for path in PATHS:
        yield good | {"desktop": path}
        for name in ("disk", "kernel", "initrd") if path else ("disk",):  # no kernel at all is none
            yield good | {"desktop": new_id(), "spec": good["spec"] | {name: path}}
    for change in (
        {"memory_mib": 2**62}, {"memory_mib": -1}, {"vcpus": 10**9}, {"disk_format": "vmdk"},
        {"disk_format": "json:"}, {"disk_gib": -1},
    ):  # fmt: skip
        yield good | {"desktop": new_id(), "spec": good["spec"] | change}
    nonsense: tuple[dict[str, Any], ...] = (
        {"boot": -1},
        {"epoch": 2**80},
        {"spec": None},
        {"type": "run_shell"},
        {"desktop": None},
    )
    for change in nonsense:
        yield good | {"desktop": new_id()} | change


async def test_hostile_orders_start_nothing_and_leave_their_folders(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text(CANARY)
    async with local_cluster(tmp_path / "home", start=()) as here:
        host = await here.add_host(register=False)
        spec = ImageStore(here.settings.images_dir).spec(IMAGE)
        kept = EnsureDesktop(epoch=1, desktop=new_id(), boot=1, spec=spec)
        async with wire_link(here.settings, "cluster") as cluster:

            async def take(_report: AnyMessage) -> AnyMessage:
                return Done()

            await cluster.serve(Subjects("main").reports("*"), take)
            await cluster.request(ORDERS, kept, Done)
            await eventually(lambda: host.journal.records[kept.desktop].state is DesktopState.RUNNING)
            good = json.loads(encode(kept))
            for order in hostile_orders(good):
                decode((await cluster._client.request(ORDERS, json.dumps(order).encode(), timeout=10)).data)

            def all_others_failed() -> bool:
                others = [record for name, record in host.journal.records.items() if name != kept.desktop]
                return all(record.state is DesktopState.FAILED for record in others)

            await eventually(all_others_failed)
            assert set(await host.hypervisor.guests()) == {kept.desktop}
            await cluster.request(ORDERS, kept, Done)
    assert canary.read_text() == CANARY
    assert sorted(path.name for path in tmp_path.iterdir()) == ["canary", "home"]
