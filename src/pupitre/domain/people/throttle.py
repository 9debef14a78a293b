"""Limits of wrong passwords: how many are taken before the next attempt is refused unseen, and for how long.

Failures are counted in windows: one begins with its first failure and lasts for a period; when its limit is reached,
attempts are refused until it ends. With ``n`` failures a minute (``sign_in_per_minute``):

========  ================================  =============  ===================================================
Counted   by                                Limit          Holds back
========  ================================  =============  ===================================================
pair      sign-in name and address          n in 1 min     one address that guesses one name
name      sign-in name, from everywhere     10 n in 10 min  many addresses that guess one name
address   address, whatever the name        60 n in 1 h    one address that tries a few passwords on every name
device    name and a browser's own cookie   n in 1 day     whoever has stolen such a cookie
========  ================================  =============  ===================================================

Guessing is as slow as with one limit of n a minute for names and addresses, which is what there was before:

- one address, one name: n a minute, 1,440 n a day;
- one address, many names: 60 n an hour, which is n a minute over all of them together;
- many addresses, one name: 10 n in ten minutes, which is n a minute;
- a stolen cookie of a known browser: n a day on top, for that one name.

With n = 10 that is 14,400 guesses a day for a name; half of the passwords that Pupitre makes itself (2**48) would take
fifty million years. What a wider window costs is its first burst: 10 n instead of n for a name, 60 n for an address.
What it brings: somebody who locks ``teacher`` at one address locks nobody at another, forty people behind one address
have n slips a minute each (and 60 n an hour together), and a browser that knows its owner is asked by no counter but
its own. When that one is full, the browser counts as a stranger's.

Successes never count, and take nothing back: who has an account could else guess without an end.
"""

import hashlib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

MINUTE = 60_000
"""Milliseconds."""


class Counted(StrEnum):
    PAIR = "pair"
    NAME = "name"
    ADDRESS = "address"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class Limit:
    """``failures`` within ``period`` ms."""

    failures: int
    period: int


def limits(per_minute: int) -> Mapping[Counted, Limit]:
    """The table above."""
    return {
        Counted.PAIR: Limit(per_minute, MINUTE),
        Counted.NAME: Limit(10 * per_minute, 10 * MINUTE),
        Counted.ADDRESS: Limit(60 * per_minute, 60 * MINUTE),
        Counted.DEVICE: Limit(per_minute, 24 * 60 * MINUTE),
    }


@dataclass(frozen=True, slots=True)
class Counter:
    """Counter of failures. ``name`` or ``address`` is empty where it does not matter.

    A browser's ``address`` is the id in its cookie.
    """

    kind: Counted
    name: str
    address: str

    @property
    def id(self) -> str:
        return hashlib.sha256("\0".join((self.kind, self.name, self.address)).encode("utf-8", "replace")).hexdigest()


@dataclass(frozen=True, slots=True)
class Tally:
    """``failures`` in the window that ends at ``until`` (Unix ms)."""

    counter: Counter
    failures: int
    until: int


def of_stranger(name: str, address: str) -> tuple[Counter, ...]:
    """The counters of a failure by a browser that nobody knows, or by a program."""
    return (
        Counter(Counted.PAIR, name, address),
        Counter(Counted.NAME, name, ""),
        Counter(Counted.ADDRESS, "", address),
    )


def of_device(name: str, device: str) -> tuple[Counter, ...]:
    """The counter of a failure in a browser that ``name`` has signed in with before."""
    return (Counter(Counted.DEVICE, name, device),)


def is_locked(tally: Tally, table: Mapping[Counted, Limit], now: int) -> bool:
    """Whether the next attempt is refused. A window that ends later than it could have means a clock set back."""
    limit = table[tally.counter.kind]
    return now < tally.until <= now + limit.period and tally.failures >= limit.failures


def network_of(address: str) -> str:
    """The address as it is counted: of IPv6 the /64, since whoever has one address of it has them all."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
