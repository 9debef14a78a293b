"""Changes: what decisions see of the cluster's state, and what they change of it.

`pupitre.store.cluster` begins them with what the decisions need, saves what they changed, and has the state take it
once it is committed. Many decisions may share one `Changes`, each seeing what those before it did.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pupitre.domain.command import CommandKind, CommandState, Fault, desktop_of
from pupitre.domain.desktop import Desktop
from pupitre.domain.host import Host
from pupitre.domain.image import CopyState, Image
from pupitre.domain.overhead import guest_overhead_mib
from pupitre.domain.status import Rows
from pupitre.domain.warning import set_aside_by
from pupitre.scheduler.placement import Candidate
from pupitre.scheduler.state import (
    STARTING,
    AuditEvent,
    ClusterState,
    Copies,
    JournaledCommand,
    Outcomes,
    PlacedDesktop,
    RegisteredHost,
)

KNOWS_MORE = "set aside: it says that it knows more than the cluster (pupitre cluster confirm)"
MOST_SUBJECT, MOST_DETAIL = 255, 1000
"""Characters of an audit event."""


class Changes:
    """Rows that decisions see and change. ``commands`` and ``desktops`` are those that they have to see.

    The maps whose names begin with ``old_`` are as they were before.
    """

    def __init__(
        self,
        state: ClusterState | None = None,
        *,
        commands: Iterable[JournaledCommand] = (),
        desktops: Iterable[PlacedDesktop] = (),
    ) -> None:
        self.state = state = state or ClusterState()
        self.commands = {command.id: command for command in sorted(commands, key=lambda command: command.id)}
        self.desktops = {placed.seen.id: placed for placed in desktops}
        self.hosts: dict[str, RegisteredHost] = dict(state.hosts)
        self.images: dict[str, dict[str, Image]] = dict(state.images)
        self.starting = state.starting.copy()
        self.conflicts = dict(state.conflicts)
        self.unknown_guests = dict(state.unknown_guests)
        self.old_commands = dict(self.commands)
        self.old_desktops = dict(self.desktops)
        self.old_hosts = state.hosts
        self.old_conflicts, self.old_unknown_guests = state.conflicts, state.unknown_guests
        self.confirmed_before = 0
        self.accepted: dict[str, int] = {}
        self.copies: dict[str, Copies] = {}
        self.repeated: set[str] = set()
        self.audit_events: dict[str, AuditEvent] = {}
        self.removed_hosts: set[str] = set()

    # Commands

    def command(self, command_id: str) -> JournaledCommand | None:
        return self.commands.get(command_id)

    def add_command(self, command: JournaledCommand, *, now: int) -> None:
        self.commands[command.id] = command
        self.accepted[command.id] = now

    def finish(self, command_id: str, outcome: CommandState, fault: Fault | None = None) -> None:
        """Record the one outcome; a second one changes nothing."""
        old = self.commands[command_id]
        if old.outcome is None:
            self.commands[command_id] = replace(old, outcome=outcome, fault=fault)

    def repeat(self, command_id: str) -> None:
        """Report an outcome once more: it is asked for again."""
        self.repeated.add(command_id)

    def open_commands(self, desktop_id: str, kind: CommandKind) -> list[JournaledCommand]:
        return [
            command
            for command in self.commands.values()
            if command.outcome is None and command.order.kind is kind and desktop_of(command.order) == desktop_id
        ]

    # Desktops

    def desktop(self, desktop_id: str) -> PlacedDesktop | None:
        return self.desktops.get(desktop_id)

    def desktops_on(self, host: str) -> list[PlacedDesktop]:
        """Needs the host in `ReadSet.hosts`."""
        return [placed for placed in self.desktops.values() if placed.counted_on == host]

    def put_desktop(self, placed: PlacedDesktop) -> None:
        old = self.desktops.get(placed.seen.id)
        self.desktops[placed.seen.id] = placed
        for desktop, sign in ((old, -1), (placed, 1)):
            if desktop is not None and (host := self.hosts.get(desktop.counted_on or "")):
                self.hosts[host.host.name] = replace(
                    host,
                    used_memory_mib=host.used_memory_mib + sign * desktop.memory_mib,
                    used_vcpus=host.used_vcpus + sign * desktop.vcpus,
                )
                if desktop.seen.state in STARTING:
                    self.starting[host.host.name] += sign

    # Hosts and images

    def host(self, name: str) -> Host | None:
        registered = self.hosts.get(name)
        return registered.host if registered else None

    def put_host(self, host: Host, **changes: Any) -> None:
        """``changes`` are other fields of `RegisteredHost`."""
        old = self.hosts.get(host.name) or RegisteredHost(host)
        self.hosts[host.name] = replace(old, host=host, **changes)

    def remove_host(self, name: str) -> None:
        """Remove a host with its copies; its desktops must be gone."""
        self.hosts.pop(name, None)
        self.removed_hosts.add(name)
        self.conflicts.pop(name, None)
        self.unknown_guests = {key: guest for key, guest in self.unknown_guests.items() if key[0] != name}
        self.put_copies(name, [])

    def put_copies(self, host: str, copies: Copies) -> None:
        """Replace the copies of one host; those not named are marked gone."""
        self.copies[host] = copies
        self.images[host] = {image.id: image for image, _ in copies if image.state is CopyState.READY}

    def image(self, image_id: str) -> Image | None:
        """The image as a host has it ready; of several, as it was published last."""
        found = [images[image_id] for images in self.images.values() if image_id in images]
        return max(found, key=lambda image: image.since, default=None)

    def overhead(self, host: str, image: str) -> int:
        """Memory (MiB) that a guest of ``image`` takes on ``host`` beyond its own."""
        facts = self.hosts[host].host.facts if host in self.hosts else None
        spec = self.state.specs.get((host, image))
        return guest_overhead_mib(facts.accelerator if facts else "", spec.video if spec else "")

    def candidates(self, image: str, *, overcommit: float) -> list[Candidate]:
        """The snapshot for the placement of a desktop of ``image``."""
        return [self._candidate(registered, image, overcommit) for _, registered in sorted(self.hosts.items())]

    def _candidate(self, registered: RegisteredHost, image: str, overcommit: float) -> Candidate:
        host, facts = registered.host, registered.host.facts
        return Candidate(
            name=host.name,
            state=host.state,
            edition=host.edition,
            images=frozenset(self.images.get(host.name, ())),
            memory_mib=facts.memory_mib if facts else 0,
            vcpus=int(facts.vcpus * overcommit) if facts else 0,
            disk_free_mib=facts.disk_free_mib if facts else 0,
            used_memory_mib=registered.used_memory_mib,
            used_vcpus=registered.used_vcpus,
            starting=self.starting[host.name],
            label=host.title,
            overhead_mib=self.overhead(host.name, image),
            over_books_mib=facts.over_books_mib if facts else 0,
            aside=KNOWS_MORE if host.name in self.conflicts else _why_aside(host),
        )

    # The audit log

    def audit(self, action: str, subject: str, detail: str, *, now: int, id: str | None = None) -> None:
        """Have the audit log say, once for each ``id``, what was settled without anybody's asking.

        An event without an id gets one where it is written.
        """
        event = AuditEvent(id or "", now, action, subject[:MOST_SUBJECT], detail[:MOST_DETAIL])
        self.audit_events[id or f"new {len(self.audit_events)}"] = event

    # What has changed

    @property
    def changed_desktops(self) -> list[PlacedDesktop]:
        return [placed for id, placed in self.desktops.items() if self.old_desktops.get(id) != placed]

    @property
    def changed_hosts(self) -> tuple[Host, ...]:
        """Hosts of which people see something new."""
        old = self.old_hosts
        return tuple(new.host for name, new in self.hosts.items() if name not in old or old[name].host != new.host)

    @property
    def rows(self) -> Rows | None:
        """The hosts and desktops that have changed; None where that is not all there is to tell."""
        if self.copies or self.removed_hosts:
            return None
        return Rows(hosts=self.changed_hosts, desktops=tuple(self._changed_sights))

    @property
    def _changed_sights(self) -> Iterable[Desktop]:
        for placed in self.changed_desktops:
            old = self.old_desktops.get(placed.seen.id)
            if old is None or old.seen != placed.seen:
                yield placed.seen

    @property
    def outcomes(self) -> Outcomes | None:
        """Outcomes to report; None where they have to be read."""
        if self.repeated:
            return None
        found = []
        for id, command in self.commands.items():
            if command.outcome is not None and self.old_commands.get(id) != command:
                placed = self.desktops.get(desktop_of(command.order) or "")
                about = Rows(desktops=(placed.seen,)) if placed else Rows(hosts=self.changed_hosts)
                found.append((command, about))
        return found

    def apply(self, version: int) -> None:
        """Have the state take what is committed as ``version``."""
        state = self.state
        state.version = version
        state.hosts, state.images, state.starting = self.hosts, self.images, self.starting
        state.conflicts, state.unknown_guests = self.conflicts, self.unknown_guests
        state.confirmed = max(state.confirmed, self.confirmed_before)
        state.put_desktops(self.changed_desktops)
        state.put_commands(command for id, command in self.commands.items() if self.old_commands.get(id) != command)
        for host, copies in self.copies.items():
            state.put_specs(host, copies)


def _why_aside(host: Host) -> str:
    warning = set_aside_by(host.warnings)
    return f"set aside ({warning.code.replace('_', ' ')})" if warning else ""
