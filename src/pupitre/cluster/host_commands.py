"""What a command about a host changes where it is journalled: what is wanted of the host, or how it is configured.

The rest is `host_life`'s, which works on the difference between wanted and seen. Of two commands that want
different things of one host, the later one holds, and the earlier one ends as overtaken.
"""

from collections.abc import Iterable
from dataclasses import replace

from pupitre.domain.command import BootUpHost, CommandState, ConfigureHost, Fault, RegisterHost, RetireHost
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
from pupitre.store.cluster_rows import Entry, HostEntry
from pupitre.store.transaction import Transaction

READY, SHUT_DOWN, UNREGISTERED = "ready", "shut_down", "unregistered"
"""What can be wanted of a host."""
AT_ONCE = 0
"""As `HostEntry.drained_by`: without warning, and without time to shut down."""
HEARD = frozenset({HostState.READY, HostState.DRAINING})
"""States of a host that answers."""

HostOrder = RegisterHost | RetireHost | BootUpHost | ConfigureHost


def decide(transaction: Transaction, entry: Entry, order: HostOrder, *, now: int, notice_ms: int) -> Entry:
    """``entry`` with its outcome, if it has one already. ``notice_ms`` is what users get to save their work."""
    try:
        match order:
            case RegisterHost():
                check_new_name(transaction, order)
                _overtake(transaction, entry, order.name, "it is registered")
            case RetireHost():
                _retire(transaction, entry, order, now=now, notice_ms=notice_ms)
            case BootUpHost():
                return _boot_up(transaction, entry, order)
            case ConfigureHost():
                _configure(transaction, order)
                return replace(entry, outcome=CommandState.SUCCEEDED)
    except CommandError as error:
        return replace(entry, outcome=CommandState.FAILED, fault=Fault(error.code, error.reason))
    return entry


def withdraw(transaction: Transaction, entry: Entry) -> None:
    """Nobody waits for ``entry`` any more: what it wanted of its host is not wanted any more."""
    order = entry.order
    if not isinstance(order, RetireHost):
        return
    held = transaction.hosts.get(host_of(transaction, entry) or "")
    if held and held.wanted == wanted_by(order) and not open_entries(transaction, held.host.name, held.wanted):
        transaction.put_host(held.host, wanted=READY, drained_by=None)


def wanted_by(order: object) -> str | None:
    """What the order wants of its host."""
    match order:
        case RetireHost(unregister=unregister):
            return UNREGISTERED if unregister else SHUT_DOWN
        case BootUpHost() | RegisterHost():
            return READY
    return None


def host_of(transaction: Transaction, entry: Entry) -> str | None:
    """The name of the host that a command is about; None if there is none."""
    match entry.order:
        case RegisterHost(name=name):
            return name
        case RetireHost(host=called) | BootUpHost(host=called) | ConfigureHost(host=called):
            found = _called(transaction, called)
            return found[0].host.name if len(found) == 1 else None
    return None


def open_entries(transaction: Transaction, host: str, wanted: str | None = None) -> list[Entry]:
    """Open commands about a host, oldest first; those that want ``wanted`` of it, if given."""
    return [
        entry
        for entry in transaction.entries.values()
        if entry.outcome is None
        and isinstance(entry.order, RetireHost | BootUpHost | RegisterHost)
        and (wanted is None or wanted_by(entry.order) == wanted)
        and host_of(transaction, entry) == host
    ]


def check_new_name(transaction: Transaction, order: RegisterHost) -> None:
    """Raises `RegistrationFault`."""
    for held in transaction.hosts.values():
        if held.host.label == order.name and held.host.name != order.name:
            raise RegistrationFault(f"{held.host.name} is labelled {order.name} already. Give it another label first.")
    try:
        parse_mac(order.mac) if order.mac else None
    except Invalid as error:
        raise RegistrationFault(error.reason) from error


def _retire(transaction: Transaction, entry: Entry, order: RetireHost, *, now: int, notice_ms: int) -> None:
    fault = UnregistrationFault if order.unregister else ShutdownFault
    held = _find(transaction, order.host, fault)
    host = held.host
    if host.state is HostState.SHUT_DOWN and not order.unregister:
        raise ShutdownFault(f"{host.title} is shut down already.")
    if host.state not in HEARD | {HostState.SHUT_DOWN} and not (order.unregister and order.at_once):
        raise fault(
            f"{host.title} does not answer. Boot it up first; or unregister it at once, which gives up its desktops."
        )
    wanted = wanted_by(order)
    drained_by = AT_ONCE if order.at_once else now + notice_ms
    if held.wanted == wanted and held.drained_by is not None:
        drained_by = min(drained_by, held.drained_by)
    _overtake(transaction, entry, host.name, "it is to be retired")
    transaction.put_host(host, wanted=wanted, drained_by=drained_by)


def _boot_up(transaction: Transaction, entry: Entry, order: BootUpHost) -> Entry:
    held = _find(transaction, order.host, BootUpFault)
    _overtake(transaction, entry, held.host.name, "it is to be booted up")
    transaction.put_host(held.host, wanted=READY, drained_by=None)
    if held.host.state in HEARD:
        return replace(entry, outcome=CommandState.SUCCEEDED)
    return entry


def _configure(transaction: Transaction, order: ConfigureHost) -> None:
    held = _find(transaction, order.host, ConfigurationFault)
    host = held.host
    if order.label is not None:
        _check_label(transaction, host, order.label)
    if order.address is not None and not order.address.strip():
        raise ConfigurationFault("The address is empty. Give the one where the gateway reaches the host's consoles.")
    if order.port is not None and order.port != host.port and host.state in HEARD:
        raise ConfigurationFault(
            f"The console server of {host.title} listens on port {host.port}, not {order.port}."
            " Change its setting console_port and restart `pupitre host` there; the port follows by itself."
        )
    if order.edition is not None and order.edition != host.edition and held.used_vcpus:
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
    transaction.put_host(changed)


def _check_label(transaction: Transaction, host: Host, label: str) -> None:
    for other in transaction.hosts.values():
        if other.host.name != host.name and label.strip() in {other.host.name, other.host.label} - {""}:
            raise ConfigurationFault(f"{other.host.name} is called {label.strip()} already. Choose another label.")


def _overtake(transaction: Transaction, entry: Entry, host: str, why: str) -> None:
    """End the commands that want something else of the host than ``entry`` does."""
    for earlier in open_entries(transaction, host):
        if wanted_by(earlier.order) != wanted_by(entry.order):
            reason = f"Overtaken by a later command: {why}."
            transaction.finish(earlier.id, CommandState.CANCELLED, Fault(fault_of(earlier.order).code, reason))


def fault_of(order: object) -> type[CommandError]:
    """The typed error of a command about a host."""
    if isinstance(order, RetireHost):
        return UnregistrationFault if order.unregister else ShutdownFault
    return BootUpFault if isinstance(order, BootUpHost) else RegistrationFault


def _called(transaction: Transaction, called: str) -> list[HostEntry]:
    """The hosts with that name, else with that label, else at that address."""
    hosts = transaction.hosts
    if called in hosts:
        return [hosts[called]]
    labelled = [held for held in hosts.values() if called and held.host.label == called]
    return labelled or [held for held in hosts.values() if held.host.address == called]


def _find(transaction: Transaction, called: str, fault: type[CommandError]) -> HostEntry:
    found = _called(transaction, called)
    if len(found) == 1:
        return found[0]
    if found:
        raise fault(f"{called} means {_names(found)}. Say which, by its name.")
    there = transaction.hosts.values()
    raise fault(f"There is no host {called}. " + (f"There are: {_names(there)}." if there else "None is registered."))


def _names(hosts: Iterable[HostEntry]) -> str:
    names = sorted(held.host.name for held in hosts)
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else "".join(names)
