"""Limits of what one connection, and all of them together, may cost a process: the same on every port.

`pupitre.net.listener` counts connections and makes room, `pupitre.net.http_protocol` and
`pupitre.net.splice` bound what each of them may send, and may leave unread.
"""

import resource
from collections.abc import Callable
from dataclasses import dataclass

from pupitre.config import Settings

HEAD_BYTES = 64 << 10
"""Bytes of a request that are not its body: request line, headers, trailers, what frames its chunks."""
HEADER_COUNT = 128
"""Headers of a request. Each costs some 200 bytes in Python, however short it is."""
HIGH_WATER = 64 << 10
"""Bytes waiting to be written at which nothing more is read that would add to them."""
KERNEL_BUFFER = 128 << 10
"""Bytes that the kernel keeps of one connection in each direction, beside as many for its own records: enough for
10 Mbit/s at 100 ms of delay, and 100 Mbit/s at 10 ms."""

MOST_CONNECTIONS = 32_768
"""Connections of one port where the descriptors would allow more: at 1 MB each, they are a machine's memory."""
KEPT_BACK = 8
"""One descriptor of so many is for no caller: databases, broker, dials to hosts, files."""
OPS_CONNECTIONS = 64
"""Connections of an ops port."""
OPS_KEPT_BACK = 16
"""Descriptors that not even an ops port takes."""
HANDSHAKES = 128
"""Connections to a port of a host that have not shown a good ticket yet."""


def nobody(_address: str) -> bool:
    """No address is exempt."""
    return False


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one port. Times in seconds.

    ``last_descriptor``: connections are taken up to this descriptor; the kernel gives the lowest that is
    free, so a higher one means that all below are in use, by whatever. ``waiting``: connections from which
    something is waited for. ``stall``: time in which an answer that is not read has to move on by about
    `HIGH_WATER` bytes. ``is_proxy``: addresses that stand for many, which ``per_address`` spares.
    """

    connections: int
    per_address: int
    last_descriptor: int
    waiting: int
    head: float = 10.0
    body: float = 30.0
    idle: float = 15.0
    stall: float = 30.0
    is_proxy: Callable[[str], bool] = nobody


def raise_descriptors() -> int:
    """Raise this process's soft limit of open files to the hard one; the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return descriptors()


def descriptors() -> int:
    """Files that this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 30 if soft == resource.RLIM_INFINITY else soft


def of_web(settings: Settings) -> Limits:
    """Limits of portal and gateway.

    A school behind one address is many browsers: by default it may have half of all.
    """
    usable = descriptors() - _kept_back()
    connections = min(settings.max_connections or MOST_CONNECTIONS, usable)
    return Limits(
        connections=connections,
        per_address=min(settings.max_connections_per_address or max(connections // 2, 1), connections),
        last_descriptor=usable,
        waiting=connections,
        head=settings.head_timeout,
        body=settings.body_timeout,
        idle=settings.idle_timeout,
        stall=settings.stall_timeout,
        is_proxy=settings.proxies.trusts,
    )


def of_ops(settings: Settings) -> Limits:
    """Limits of an ops port: it answers while callers of other ports have all the descriptors they can get."""
    return Limits(
        connections=OPS_CONNECTIONS,
        per_address=OPS_CONNECTIONS,
        last_descriptor=descriptors() - OPS_KEPT_BACK,
        waiting=OPS_CONNECTIONS,
        head=settings.head_timeout,
        body=settings.body_timeout,
        idle=settings.idle_timeout,
        stall=settings.stall_timeout,
    )


def of_host() -> Limits:
    """Limits of a host's console port and viewer port: few may wait, and screens are limited by their tickets."""
    usable = descriptors() - _kept_back()
    return Limits(connections=usable, per_address=usable, last_descriptor=usable, waiting=HANDSHAKES)


def _kept_back() -> int:
    return max(descriptors() // KEPT_BACK, 2 * OPS_KEPT_BACK)
