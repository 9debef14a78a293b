"""The hosts of one machine: shares that fit into it, names and cards of their own, registered once."""

import asyncio
from pathlib import Path

import psutil
import pytest

from pupitre.config import Settings
from pupitre.domain.host import parse_mac
from pupitre.up.hosts import RESERVED_MIB, WakeListener, local_hosts, wake_socket
from pupitre.up.processes import children
from pupitre.wire.wake import wake

pytestmark = pytest.mark.anyio


def settings(home: Path, **values: object) -> Settings:
    return Settings.model_validate({"home": home, "nats_url": "tls://example.org:4222", **values})


def test_one_host_has_the_machine_alone(tmp_path: Path) -> None:
    (host,) = local_hosts(settings(tmp_path, host_name="lab"))
    assert (host.name, host.memory_mib, host.folder) == ("lab", None, tmp_path / "hosts/lab")


@pytest.mark.parametrize(("memory", "most"), [(9000, 9000), (None, None)])
def test_shares_fit_into_the_machine(tmp_path: Path, memory: int | None, most: int | None) -> None:
    hosts = local_hosts(settings(tmp_path, hosts=3, host_memory_mib=memory))
    assert [host.name for host in hosts] == ["host-1", "host-2", "host-3"]
    assert len({parse_mac(host.mac) for host in hosts}) == 3
    given_out = sum(host.memory_mib or 0 for host in hosts)
    machine = psutil.virtual_memory().total >> 20
    assert 0 < given_out <= (most or machine - RESERVED_MIB)


def test_each_runs_with_settings_of_its_own(tmp_path: Path) -> None:
    shared = {"PUPITRE_HOME": str(tmp_path), "PUPITRE_CONSOLE_PORT": "20001"}
    (stage,) = children.stages(settings(tmp_path, hosts=3, console_port=20001, viewer_port=20002), shared)
    hosts = {spec.name: spec.environment for spec in stage if spec.name.startswith("host")}
    assert {name: environment["PUPITRE_HOST_NAME"] for name, environment in hosts.items()} == {
        name: name for name in ("host-1", "host-2", "host-3")
    }
    ports = {environment["PUPITRE_CONSOLE_PORT"] for environment in hosts.values()}
    assert len(ports) == 3
    assert hosts["host-1"]["PUPITRE_CONSOLE_PORT"] == "20001"
    assert "PUPITRE_VIEWER_PORT" not in hosts["host-1"]
    assert hosts["host-2"]["PUPITRE_VIEWER_PORT"] == "0"


def test_a_host_is_registered_once_and_not_while_it_is_shut_down(tmp_path: Path) -> None:
    first, second = local_hosts(settings(tmp_path, hosts=2))
    for host in (first, second):
        host.folder.mkdir(parents=True)
        assert host.is_due
    first.registered.touch()
    second.powered_off.touch()
    assert not first.is_due
    assert not second.is_due


async def test_a_packet_names_the_host_that_it_wakes(tmp_path: Path) -> None:
    woken: asyncio.Queue[str] = asyncio.Queue()
    with wake_socket() as cards:
        address = "{}:{}".format(*cards.getsockname())
        loop = asyncio.get_running_loop()
        listening, _ = await loop.create_datagram_endpoint(lambda: WakeListener(woken.put_nowait), sock=cards)
        cards_of = [host.mac for host in local_hosts(settings(tmp_path, hosts=2))]
        listening.sendto(b"noise", cards.getsockname())
        for mac in cards_of:
            wake(mac, address)
        assert [await asyncio.wait_for(woken.get(), 10) for _ in cards_of] == cards_of
        listening.close()
