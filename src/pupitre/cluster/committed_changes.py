"""What is new to the endpoint, from what was just written: the database is read only where something is missing."""

from collections.abc import Sequence

from pupitre.domain.desktop import Desktop
from pupitre.domain.host import Host
from pupitre.domain.status import Rows
from pupitre.store.cluster import Committed


def joined(after: int, committed: Sequence[Committed]) -> tuple[int, Rows] | None:
    """The latest rows of transactions that follow ``after`` without a gap, and the version they bring to.

    None where one is missing, or does not know its rows.
    """
    hosts: dict[str, Host] = {}
    desktops: dict[str, Desktop] = {}
    version = after
    for one in committed:
        if one.version <= after:
            continue
        if one.version != version + 1 or one.rows is None:
            return None
        version = one.version
        hosts |= {host.name: host for host in one.rows.hosts}
        desktops |= {desktop.id: desktop for desktop in one.rows.desktops}
    if version == after:
        return None
    return version, Rows(hosts=tuple(hosts.values()), desktops=tuple(desktops.values()))
