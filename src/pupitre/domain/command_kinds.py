"""Table of the kinds of command: for each its order, its fault, its time limit and its words."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pupitre.domain.command import (
    BootDesktop,
    BootUpHost,
    CommandKind,
    ConfigureHost,
    DestroyDesktop,
    Halt,
    Order,
    RegisterHost,
    RetireHost,
)
from pupitre.errors import (
    BootFailure,
    BootUpFault,
    CommandError,
    ConfigurationFault,
    DestructionFault,
    Halted,
    RegistrationFault,
    ShutdownFault,
    UnregistrationFault,
)

MACHINE_LIMIT = 600.0
"""Seconds for a command that waits for a machine, or for people who are warned first."""


@dataclass(frozen=True, slots=True)
class KindOfCommand:
    """One row. ``fault`` gives the error with which an order fails, ``words`` the line that says what was asked for.

    ``timeout`` is in seconds; None is the setting ``command_timeout``.
    """

    order: type[Order]
    title: str
    fault: Callable[[Any], type[CommandError]]
    words: Callable[[Any], str]
    timeout: float | None = None
    about_hosts: bool = True


def _boot_words(order: BootDesktop) -> str:
    return f"Start a desktop of {order.image}{' to edit its image' if order.edition else ''}"


def _register_words(order: RegisterHost) -> str:
    return f"Register {order.name} ({order.address}:{order.port}){' as an edition host' if order.edition else ''}"


def _retire_words(order: RetireHost) -> str:
    return f"{'Unregister' if order.unregister else 'Shut down'} {order.host}{' at once' if order.at_once else ''}"


def _configure_words(order: ConfigureHost) -> str:
    changes = [
        f"label “{order.label}”" if order.label is not None else "",
        f"address {order.address}" if order.address is not None else "",
        f"port {order.port}" if order.port is not None else "",
        "" if order.edition is None else "edition host" if order.edition else "no edition host",
        "" if order.mac is None else f"MAC {order.mac}" if order.mac else "no MAC",
    ]
    return f"Configure {order.host}: {', '.join(change for change in changes if change) or 'no change'}"


COMMAND_KINDS: Mapping[CommandKind, KindOfCommand] = {
    row.order.kind: row
    for row in (
        KindOfCommand(BootDesktop, "Start a desktop", lambda _: BootFailure, _boot_words, about_hosts=False),
        KindOfCommand(
            DestroyDesktop, "Stop a desktop", lambda _: DestructionFault, lambda _: "Stop a desktop", about_hosts=False
        ),
        KindOfCommand(RegisterHost, "Register a host", lambda _: RegistrationFault, _register_words),
        KindOfCommand(
            RetireHost,
            "Shut down or unregister a host",
            lambda order: UnregistrationFault if order.unregister else ShutdownFault,
            _retire_words,
            MACHINE_LIMIT,
        ),
        KindOfCommand(
            BootUpHost, "Boot up a host", lambda _: BootUpFault, lambda order: f"Boot up {order.host}", MACHINE_LIMIT
        ),
        KindOfCommand(ConfigureHost, "Configure a host", lambda _: ConfigurationFault, _configure_words),
        KindOfCommand(
            Halt,
            "Halt the cluster",
            lambda _: Halted,
            lambda order: f"Halt the cluster{' and its hosts' if order.hosts else ''}",
            MACHINE_LIMIT,
        ),
    )
}


def fault_of(order: Order) -> type[CommandError]:
    """Error with which a command of this order fails."""
    return COMMAND_KINDS[order.kind].fault(order)


def order_words(order: Order) -> str:
    """Line of a list that says what was asked for."""
    return COMMAND_KINDS[order.kind].words(order)
