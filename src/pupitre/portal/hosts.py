"""Hosts as administrators see and change them. Each change is one command; the cluster decides and answers.

A host is called by its name, its label or its address; commands carry its name.
"""

from dataclasses import dataclass

from pupitre.domain.command import BootUpHost, Command, ConfigureHost, Halt, Order, RegisterHost, RetireHost
from pupitre.domain.host import Host
from pupitre.domain.people.access import may_manage_hosts
from pupitre.errors import Forbidden, Invalid, NotFound
from pupitre.portal.commands import ask
from pupitre.portal.context import Portal
from pupitre.portal.identity.sessions import Caller
from pupitre.portal.live.freshness import ClusterFreshness, cluster_freshness


@dataclass(frozen=True, slots=True)
class SeenHost:
    """A host, how many desktops have a place on it, and how fresh that is."""

    host: Host
    desktops: int
    link: ClusterFreshness


def hosts_of(portal: Portal) -> list[SeenHost]:
    """Every host, by name."""
    link = cluster_freshness(portal)
    load = portal.status.desktops_by_host
    return [SeenHost(host, load[host.name], link) for host in portal.status.hosts]


def host_called(portal: Portal, called: str) -> SeenHost:
    """The host with that name, else with that label, else at that address. Raises `NotFound`."""
    hosts = hosts_of(portal)
    for key in ("name", "label", "address"):
        found = [seen for seen in hosts if getattr(seen.host, key) == called]
        if len(found) == 1:
            return found[0]
    there_are = ", ".join(seen.host.title for seen in hosts) or "none yet"
    raise NotFound(f"There is no host {called[:64]!r}. There are: {there_are}.")


async def register_host(portal: Portal, caller: Caller, order: RegisterHost) -> Command:
    """Ask the cluster to take a host whose agent already runs. Raises `Forbidden`, `TooEarly`, `NoAnswer`."""
    return await _ask(portal, caller, order)


async def retire_host(portal: Portal, caller: Caller, called: str, *, unregister: bool, at_once: bool) -> Command:
    """Shut a host down or take it out of the cluster, its desktops first. Raises `NotFound` and as above."""
    host = _name(portal, caller, called)
    return await _ask(portal, caller, RetireHost(host=host, unregister=unregister, at_once=at_once))


async def boot_up_host(portal: Portal, caller: Caller, called: str) -> Command:
    """Wake a host that was shut down. Raises `NotFound` and as above."""
    return await _ask(portal, caller, BootUpHost(host=_name(portal, caller, called)))


async def configure_host(
    portal: Portal,
    caller: Caller,
    called: str,
    *,
    label: str | None = None,
    address: str | None = None,
    port: int | None = None,
    edition: bool | None = None,
    mac: str | None = None,
) -> Command:
    """Change what is given; an empty ``mac`` takes it away. Raises `NotFound`, `Invalid` and as above."""
    host = _name(portal, caller, called)
    order = ConfigureHost(host=host, label=label, address=address, port=port, edition=edition, mac=mac)
    if order == ConfigureHost(host=host):
        raise Invalid("Nothing is to be changed. Give a label, an address, a port, the edition flag or a MAC address.")
    return await _ask(portal, caller, order)


async def halt(portal: Portal, caller: Caller, *, hosts: bool) -> Command:
    """Stop endpoint and cluster, and the hosts too if asked. Raises `Forbidden`, `TooEarly`, `NoAnswer`."""
    return await _ask(portal, caller, Halt(hosts=hosts))


def _name(portal: Portal, caller: Caller, called: str) -> str:
    _check(caller)
    return host_called(portal, called).host.name


async def _ask(portal: Portal, caller: Caller, order: Order) -> Command:
    _check(caller)
    return await ask(portal, caller, order)


def _check(caller: Caller) -> None:
    """Routes say who may come in too; what changes a host says it once more."""
    if not may_manage_hosts(caller.user):
        raise Forbidden("Only administrators see and change hosts. Ask yours.")
