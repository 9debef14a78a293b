"""The hosts that `up` runs on this machine: real ones to the cluster, each with its share of the machine.

Each has its own folder, certificate, console port and a made-up network card. `up` listens where the
cluster sends Wake-on-LAN packets, and starts the host whose card is named in one, as its machine would.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pupitre.config import Settings
from pupitre.wire.wake import woken_by

RESERVED_MIB = 2048
"""Memory that all guests of this machine together do not get."""
LEAST_MIB = 512
_CARD = bytes.fromhex("025075700000")
"""A locally administered address (IEEE 802, the second bit): no card that was ever made has it."""


@dataclass(frozen=True, slots=True)
class LocalHost:
    """``memory_mib`` is None where the host finds out by itself: it has the machine alone."""

    name: str
    mac: str
    folder: Path
    memory_mib: int | None = None

    @property
    def registered(self) -> Path:
        """There once `up` has registered it. Whether it stays so is then the administrators' business."""
        return self.folder / "registered"

    @property
    def powered_off(self) -> Path:
        """There while it is shut down."""
        return self.folder / "powered-off"

    @property
    def is_due(self) -> bool:
        """Whether it is to be registered: once in the life of its folder."""
        return not (self.registered.exists() or self.powered_off.exists())


def local_hosts(settings: Settings) -> list[LocalHost]:
    """Hosts of this machine, as many as the setting ``hosts`` says; the first has the name that the settings give."""
    names = [settings.host_name]
    stem = settings.host_name.removesuffix("-1")
    names += [f"{stem}-{number}" for number in range(2, settings.hosts + 1)]
    share = None
    if settings.hosts > 1:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
        whole = settings.host_memory_mib or machine - RESERVED_MIB
        share = max(LEAST_MIB, whole // settings.hosts)
    return [
        LocalHost(name, _mac(number), settings.home / "hosts" / name, share)
        for number, name in enumerate(names, start=1)
    ]


def _mac(number: int) -> str:
    return (int.from_bytes(_CARD) + number).to_bytes(6).hex(":")


def wake_socket() -> socket.socket:
    """Socket on which this machine's made-up network cards listen."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    listener.setblocking(False)
    listener.bind(("127.0.0.1", 0))
    return listener


class WakeListener(asyncio.DatagramProtocol):
    """``on_wake(mac)`` hears of every packet that would wake a machine."""

    def __init__(self, on_wake: Callable[[str], None]) -> None:
        self._on_wake = on_wake

    def datagram_received(self, data: bytes, _sender: object) -> None:
        if mac := woken_by(data):
            self._on_wake(mac)
