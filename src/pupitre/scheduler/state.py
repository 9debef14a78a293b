"""State of the cluster: what its database holds, as plain values in memory.

The cluster is the only one that writes these rows, and each of its transactions takes the next version. So while the
version that a transaction takes follows on that of the state, nothing needs to be read again.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pupitre.domain.command import CommandState, Fault, Order, desktop_of
from pupitre.domain.desktop import Desktop, DesktopState
from pupitre.domain.host import Host
from pupitre.domain.image import Image, ImageSpec
from pupitre.domain.status import Rows

STARTING = frozenset({DesktopState.REQUESTED, DesktopState.PREPARING, DesktopState.BOOTING})

Copies = Sequence[tuple[Image, ImageSpec | None]]
"""A host's copies of images, each with what a guest is started from."""


@dataclass(frozen=True, slots=True)
class JournaledCommand:
    """A command in the cluster's journal; ``outcome`` None while it is under way."""

    id: str
    user: str
    order: Order
    deadline: int
    outcome: CommandState | None = None
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class PlacedDesktop:
    """A desktop as the cluster keeps it. ``wanted`` is RUNNING or GONE, whatever ``seen`` says."""

    seen: Desktop
    wanted: DesktopState
    memory_mib: int
    vcpus: int

    @property
    def counted_on(self) -> str | None:
        """The host whose memory and CPUs it uses."""
        return None if self.seen.state is DesktopState.GONE else self.seen.host


@dataclass(frozen=True, slots=True)
class RegisteredHost:
    """A host as the cluster keeps it.

    ``wanted`` is READY, SHUT_DOWN or UNREGISTERED (see `pupitre.scheduler.host_commands`), ``drained_by`` when its
    desktops are taken away (Unix ms); ``used_*`` is the sum over its desktops that are not gone.
    """

    host: Host
    wanted: str = "ready"
    drained_by: int | None = None
    used_memory_mib: int = 0
    used_vcpus: int = 0


@dataclass(frozen=True, slots=True)
class RestoreConflict:
    """A host has heard of changes that are not in this database; ``since`` is Unix ms.

    ``confirmed``: an administrator wants the cluster to go on from here. ``proven``: the host has shown an order
    that the cluster's own key signed then.
    """

    since: int
    confirmed: bool
    proven: bool = False


@dataclass(frozen=True, slots=True)
class UnknownGuest:
    """A guest that a host has and no row knows. ``proven``: the cluster's key has signed the rest for that host."""

    host: str
    desktop: str
    boot: int
    state: str
    owner: str
    image: str
    proven: bool


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """Something that the cluster settled by itself, for the audit log."""

    id: str
    at: int
    action: str
    subject: str
    detail: str


@dataclass(frozen=True, slots=True)
class ReadSet:
    """Rows that a decision has to see besides all hosts and images: each is there, or known not to be.

    ``desktops`` come with their open commands; ``hosts`` are hosts of which every desktop is needed;
    ``host_commands`` says whether open commands about hosts matter. ``new`` are ids of commands and desktops
    that the decision writes if it does not see them: these need not be looked for, as their keys would conflict.
    """

    commands: frozenset[str] = frozenset()
    desktops: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    host_commands: bool = False
    new: frozenset[str] = frozenset()

    def __or__(self, other: "ReadSet") -> "ReadSet":
        return ReadSet(
            self.commands | other.commands,
            self.desktops | other.desktops,
            self.hosts | other.hosts,
            self.host_commands or other.host_commands,
            self.new | other.new,
        )


Outcomes = list[tuple[JournaledCommand, Rows]]
"""Commands that have ended, each with the rows that it was about as they were then."""


@dataclass(slots=True)
class ClusterState:
    """State of the cluster as of ``version``: every host, copy, desktop that is not gone, and command without outcome.

    What is not here is gone, has ended, or was never there. ``version`` -1 says that all has to be read. ``images`` are
    those that a host has ready, by host and id; ``specs`` those of all copies that ever were; ``starting`` is how many
    desktops start on a host. ``conflicts`` are hosts that know more than the database, by name; ``unknown_guests`` is
    by host and desktop; of epochs before ``confirmed`` an administrator has spoken.
    """

    version: int = -1
    hosts: dict[str, RegisteredHost] = field(default_factory=dict)
    images: dict[str, dict[str, Image]] = field(default_factory=dict)
    specs: dict[tuple[str, str], ImageSpec | None] = field(default_factory=dict)
    desktops: dict[str, PlacedDesktop] = field(default_factory=dict)
    starting: Counter[str] = field(default_factory=Counter)
    commands: dict[str, JournaledCommand] = field(default_factory=dict)
    conflicts: Mapping[str, RestoreConflict] = field(default_factory=dict)
    unknown_guests: Mapping[tuple[str, str], UnknownGuest] = field(default_factory=dict)
    confirmed: int = 0
    _about: dict[str | None, set[str]] = field(default_factory=dict)

    def on(self, hosts: Collection[str]) -> list[PlacedDesktop]:
        """Every desktop on these hosts."""
        return [placed for placed in self.desktops.values() if placed.counted_on in hosts] if hosts else []

    def about(self, desktop: str | None) -> list[JournaledCommand]:
        """Commands about a desktop; with None, those about hosts."""
        return [self.commands[id] for id in self._about.get(desktop, ())]

    def spec(self, placed: PlacedDesktop) -> ImageSpec | None:
        """Specification from which its host would start a desktop."""
        return self.specs.get((placed.seen.host or "", placed.seen.image))

    @property
    def is_suspended(self) -> bool:
        """Whether the cluster as a whole waits for an administrator's word."""
        return is_suspended(self.conflicts.values())

    @property
    def waits_for_confirmation(self) -> bool:
        """Whether an administrator has to say something about a host, or about all of them."""
        return any(not conflict.confirmed for conflict in self.conflicts.values())

    def count_starting(self) -> None:
        """Count again the desktops that start on each host."""
        self.starting = Counter(
            placed.seen.host
            for placed in self.desktops.values()
            if placed.seen.state in STARTING and placed.seen.host in self.hosts
        )

    def put_desktops(self, desktops: Iterable[PlacedDesktop]) -> None:
        for placed in desktops:
            if placed.seen.state is DesktopState.GONE:
                self.desktops.pop(placed.seen.id, None)
            else:
                self.desktops[placed.seen.id] = placed

    def put_commands(self, commands: Iterable[JournaledCommand]) -> None:
        for command in commands:
            desktop = desktop_of(command.order)
            if command.outcome is None:
                self.commands[command.id] = command
                self._about.setdefault(desktop, set()).add(command.id)
            elif self.commands.pop(command.id, None):
                self._about[desktop].discard(command.id)
                if not self._about[desktop]:
                    del self._about[desktop]

    def put_specs(self, host: str, copies: Copies) -> None:
        self.specs |= {(host, image.id): spec for image, spec in copies}


def is_suspended(conflicts: Iterable[RestoreConflict]) -> bool:
    """Whether the cluster as a whole has to wait: one host's mere word is no evidence, a proof or two words are."""
    waiting = [conflict for conflict in conflicts if not conflict.confirmed]
    return len(waiting) > 1 or any(conflict.proven for conflict in waiting)
