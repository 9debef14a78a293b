"""What is done to whom and when: drawn from a seed alone, so that the seed replays it."""

import random
from dataclasses import dataclass
from enum import StrEnum


class Deed(StrEnum):
    KILL = "kill"
    """SIGKILL, and started again after ``seconds``."""
    FREEZE = "freeze"
    """SIGSTOP, and SIGCONT after ``seconds``."""
    USURP = "usurp"
    """The cluster is frozen, another one is started meanwhile, and the first one is woken after ``seconds``."""
    DELAY = "delay"
    """What the process says and hears waits for ``seconds``."""
    DEAFEN = "deafen"
    """What the process hears is held for ``seconds``, and then lost with its connection."""
    CUT = "cut"
    """Its connection is reset."""
    DRAIN = "drain"
    """The host is shut down by command, in order or at once, and booted up again after ``seconds``."""
    CRASH = "crash"
    """The database server ends as in a power cut, and is back after ``seconds``."""


@dataclass(frozen=True, slots=True, order=True)
class Action:
    at: float
    deed: Deed
    target: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.at:6.2f} s: {self.deed} {self.target} for {self.seconds:.2f} s"


DOWN = 1.5
"""Longest time that a killed process is down, in seconds."""
AWAY = 4.0
"""Longest time that one is frozen or not heard."""


DATABASE = "database"
STARTS = frozenset({Deed.KILL, Deed.USURP, Deed.DRAIN, Deed.CRASH})
"""After these somebody has to start again."""


def draw(
    seed: int,
    seconds: float,
    hosts: tuple[str, ...],
    *,
    per_second: float,
    settle: float = 2.5,
    drains: bool = False,
    database: bool = False,
) -> list[Action]:
    """Actions in order of time. One process has one thing done to it at a time, and ``settle`` seconds to start.

    ``drains``: hosts are shut down and booted up too; ``database``: there is a server of it, which crashes.
    """
    chooser = random.Random(f"schedule {seed}")
    processes = ("endpoint", "cluster", "nats", *hosts, *((DATABASE,) * 2 if database else ()))
    free_from = dict.fromkeys(processes, 0.0)
    actions = []
    for at in sorted(chooser.uniform(0, seconds) for _ in range(int(seconds * per_second))):
        target = chooser.choice(processes)
        deeds = [Deed.KILL, Deed.KILL, Deed.FREEZE]
        if target != "nats":
            deeds += [Deed.DELAY, Deed.DEAFEN, Deed.CUT]
        if target == "cluster":
            deeds += [Deed.USURP]
        if target in hosts and drains:
            deeds += [Deed.DRAIN] * 4
        if target == DATABASE:
            deeds = [Deed.CRASH]
        deed = chooser.choice(deeds)
        longest = DOWN if deed in (Deed.KILL, Deed.CRASH) else 0.0 if deed is Deed.CUT else AWAY
        action = Action(round(at, 3), deed, target, round(chooser.uniform(0, longest), 3))
        if at >= free_from[target]:
            free_from[target] = at + action.seconds + (settle if deed in STARTS else 0)
            actions.append(action)
    return actions
