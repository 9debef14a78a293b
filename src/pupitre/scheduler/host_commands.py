"""Commands about hosts: each changes what is wanted of the host, or how it is configured.

The rest is `host_life`'s, which works on the difference between wanted and seen. Of two commands that want
different things of one host, the later one holds, and the earlier one ends as overtaken.
"""

from collections.abc import Iterable
from dataclasses import replace

from pupitre.domain.command import BootUpHost, CommandState, ConfigureHost, Fault, RegisterHost, RetireHost
from pupitre.domain.command_kinds import fault_of
from pupitre.domain.host import Host, HostState, parse_mac
from pupitre.errors import (
    BootUpFault,
    CommandError,
    ConfigurationFault,
    Invalid,
    RegistrationFault,
    ShutdownFault,
    UnregistrationFault,
)
from pupitre.scheduler.changes import Changes
from pupitre.scheduler.state import JournaledCommand, RegisteredHost

READY, SHUT_DOWN, UNREGISTERED = "ready", "shut_down", "unregistered"
"""What can be wanted of a host."""
AT_ONCE = 0
"""As `RegisteredHost.drained_by`: without warning, and without time to shut down."""
ANSWERING = frozenset({HostState.READY, HostState.DRAINING})
"""States of a host that answers."""

HostOrder = RegisterHost | RetireHost | BootUpHost | ConfigureHost


def decide(
    changes: Changes, command: JournaledCommand, order: HostOrder, *, now: int, notice_ms: int
) -> JournaledCommand:
    """``command`` with its outcome, if it has one already. ``notice_ms`` is what users get to save their work."""
    try:
        match order:
            case RegisterHost():
                check_new_name(changes, order)
                _cancel_overtaken(changes, command, order.name, "it is registered")
            case RetireHost():
                _retire(changes, command, order, now=now, notice_ms=notice_ms)
            case BootUpHost():
                return _boot_up(changes, command, order)
            case ConfigureHost():
                _configure(changes, order)
                return replace(command, outcome=CommandState.SUCCEEDED)
    except CommandError as error:
        return replace(command, outcome=CommandState.FAILED, fault=Fault(error.code, error.reason))
    return command


def withdraw(changes: Changes, command: JournaledCommand) -> None:
    """Withdraw ``command``, for which nobody waits any more: what it wanted of its host is not wanted any more."""
    order = command.order
    if not isinstance(order, RetireHost):
        return
    registered = changes.hosts.get(host_of(changes, command) or "")
    if (
        registered
        and registered.wanted == wanted_by(order)
        and not open_commands(changes, registered.host.name, registered.wanted)
    ):
        changes.put_host(registered.host, wanted=READY, drained_by=None)


def wanted_by(order: object) -> str | None:
    """State that the order wants of its host."""
    match order:
        case RetireHost(unregister=unregister):
            return UNREGISTERED if unregister else SHUT_DOWN
        case BootUpHost() | RegisterHost():
            return READY
    return None


def host_of(changes: Changes, command: JournaledCommand) -> str | None:
    """The name of the host that a command is about; None if there is none."""
    match command.order:
        case RegisterHost(name=name):
            return name
        case RetireHost(host=called) | BootUpHost(host=called) | ConfigureHost(host=called):
            found = _hosts_called(changes, called)
            return found[0].host.name if len(found) == 1 else None
    return None


def open_commands(changes: Changes, host: str, wanted: str | None = None) -> list[JournaledCommand]:
    """Open commands about a host, oldest first; those that want ``wanted`` of it, if given."""
    return [
        command
        for command in changes.commands.values()
        if command.outcome is None
        and isinstance(command.order, RetireHost | BootUpHost | RegisterHost)
        and (wanted is None or wanted_by(command.order) == wanted)
        and host_of(changes, command) == host
    ]


def check_new_name(changes: Changes, order: RegisterHost) -> None:
    """Raises `RegistrationFault`."""
    for registered in changes.hosts.values():
        if registered.host.label == order.name and registered.host.name != order.name:
            raise RegistrationFault(
                f"{registered.host.name} is labelled {order.name} already. Give it another label first."
            )
    try:
        parse_mac(order.mac) if order.mac else None
    except Invalid as error:
        raise RegistrationFault(error.reason) from error


def _retire(changes: Changes, command: JournaledCommand, order: RetireHost, *, now: int, notice_ms: int) -> None:
    fault = UnregistrationFault if order.unregister else ShutdownFault
    registered = _find(changes, order.host, fault)
    host = registered.host
    if host.state is HostState.SHUT_DOWN and not order.unregister:
        raise ShutdownFault(f"{host.title} is shut down already.")
    if host.state not in ANSWERING | {HostState.SHUT_DOWN} and not (order.unregister and order.at_once):
        raise fault(
            f"{host.title} does not answer. Boot it up first; or unregister it at once, which gives up its desktops."
        )
    wanted = wanted_by(order)
    drained_by = AT_ONCE if order.at_once else now + notice_ms
    if registered.wanted == wanted and registered.drained_by is not None:
        drained_by = min(drained_by, registered.drained_by)
    _cancel_overtaken(changes, command, host.name, "it is to be retired")
    changes.put_host(host, wanted=wanted, drained_by=drained_by)


def _boot_up(changes: Changes, command: JournaledCommand, order: BootUpHost) -> JournaledCommand:
    registered = _find(changes, order.host, BootUpFault)
    _cancel_overtaken(changes, command, registered.host.name, "it is to be booted up")
    changes.put_host(registered.host, wanted=READY, drained_by=None)
    if registered.host.state in ANSWERING:
        return replace(command, outcome=CommandState.SUCCEEDED)
    return command


def _configure(changes: Changes, order: ConfigureHost) -> None:
    registered = _find(changes, order.host, ConfigurationFault)
    host = registered.host
    if order.label is not None:
        _check_label(changes, host, order.label)
    if order.address is not None and not order.address.strip():
        raise ConfigurationFault("The address is empty. Give the one where the gateway reaches the host's consoles.")
    if order.port is not None and order.port != host.port and host.state in ANSWERING:
        raise ConfigurationFault(
            f"The console server of {host.title} listens on port {host.port}, not {order.port}."
            " Change its setting console_port and restart `pupitre host` there; the port follows by itself."
        )
    if order.edition is not None and order.edition != host.edition and registered.used_vcpus:
        raise ConfigurationFault(
            f"Desktops run on {host.title}. Whether it is for editing images can be changed once they have ended:"
            " shut it down in order, or wait."
        )
    try:
        mac = host.mac if order.mac is None else parse_mac(order.mac) if order.mac else None
    except Invalid as error:
        raise ConfigurationFault(error.reason) from error
    changed = replace(
        host,
        label=host.label if order.label is None else order.label.strip(),
        address=host.address if order.address is None else order.address.strip(),
        port=host.port if order.port is None else order.port,
        edition=host.edition if order.edition is None else order.edition,
        mac=mac,
    )
    changes.put_host(changed)


def _check_label(changes: Changes, host: Host, label: str) -> None:
    for other in changes.hosts.values():
        if other.host.name != host.name and label.strip() in {other.host.name, other.host.label} - {""}:
            raise ConfigurationFault(f"{other.host.name} is called {label.strip()} already. Choose another label.")


def _cancel_overtaken(changes: Changes, command: JournaledCommand, host: str, why: str) -> None:
    """End the commands that want something else of the host than ``command`` does."""
    for earlier in open_commands(changes, host):
        if wanted_by(earlier.order) != wanted_by(command.order):
            reason = f"Overtaken by a later command: {why}."
            changes.finish(earlier.id, CommandState.CANCELLED, Fault(fault_of(earlier.order).code, reason))


def _hosts_called(changes: Changes, called: str) -> list[RegisteredHost]:
    """The hosts with that name, else with that label, else at that address."""
    hosts = changes.hosts
    if called in hosts:
        return [hosts[called]]
    labelled = [registered for registered in hosts.values() if called and registered.host.label == called]
    return labelled or [registered for registered in hosts.values() if registered.host.address == called]


def _find(changes: Changes, called: str, fault: type[CommandError]) -> RegisteredHost:
    found = _hosts_called(changes, called)
    if len(found) == 1:
        return found[0]
    if found:
        raise fault(f"{called} means {_names(found)}. Say which, by its name.")
    there = changes.hosts.values()
    raise fault(f"There is no host {called}. " + (f"There are: {_names(there)}." if there else "None is registered."))


def _names(hosts: Iterable[RegisteredHost]) -> str:
    names = sorted(registered.host.name for registered in hosts)
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else "".join(names)
