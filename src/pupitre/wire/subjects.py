"""NATS subjects, and which role may use which: the broker enforces `PERMISSIONS`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Subjects:
    """The subjects of one cluster."""

    cluster: str

    @property
    def _root(self) -> str:
        return f"pupitre.v1.{self.cluster}"

    @property
    def commands(self) -> str:
        """Requests from the endpoint to the cluster."""
        return f"{self._root}.commands"

    @property
    def status(self) -> str:
        """Changes and marks, from the cluster to endpoints."""
        return f"{self._root}.status"

    @property
    def outcomes(self) -> str:
        """Requests from the cluster to the endpoint."""
        return f"{self._root}.outcomes"

    @property
    def all_hosts(self) -> str:
        """Subject from the cluster to every host."""
        return f"{self._root}.hosts"

    def orders(self, host: str) -> str:
        """Requests from the cluster to one host."""
        return f"{self._root}.host.{host}.orders"

    def reports(self, host: str) -> str:
        """Requests from one host to the cluster. ``*`` for all hosts."""
        return f"{self._root}.host.{host}.reports"

    @staticmethod
    def host_of(subject: str) -> str:
        """The host whose subject this is."""
        return subject.split(".")[-2]

    def heartbeats(self, host: str) -> str:
        return f"{self._root}.host.{host}.heartbeats"


@dataclass(frozen=True, slots=True)
class Permissions:
    """Subjects a role may publish to and subscribe to; answers to requests are allowed beside them."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def inbox(role: str) -> str:
    """Prefix of the answers to a role's own requests, which no other role can hear."""
    return f"_INBOX.{role}"


def permissions(subjects: Subjects, role: str) -> Permissions:
    """Permissions of ``role``: ``endpoint``, ``cluster`` or ``host-<name>``."""
    answers = f"{inbox(role)}.>"
    if role == "endpoint":
        return Permissions((subjects.commands,), (subjects.status, subjects.outcomes, answers))
    if role == "cluster":
        return Permissions(
            # Its own requests too: it asks whether another cluster server answers them.
            (subjects.status, subjects.outcomes, subjects.all_hosts, subjects.orders("*"), subjects.commands),
            (subjects.commands, subjects.reports("*"), subjects.heartbeats("*"), answers),
        )
    name = role.removeprefix("host-")
    return Permissions(
        (subjects.reports(name), subjects.heartbeats(name)), (subjects.orders(name), subjects.all_hosts, answers)
    )
