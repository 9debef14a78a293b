"""Status mirror: all of the database ``status`` in memory, kept by reading its changes.

Pages, events and console tickets read it without waiting. `refresh` makes it as new as the database:
requests do so once, the change feed at every notification. Each change is read once for all of them.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from pupitre.domain.desktop import COUNTED_STATES, Desktop, DesktopState
from pupitre.domain.host import Host, HostState
from pupitre.domain.image import CopyState, Image
from pupitre.domain.status import ClusterLink, HostImage, catalogue
from pupitre.runtime.batch import Batch
from pupitre.store.sql.engine import Database
from pupitre.store.status import Status, StatusChanges

MOST_GONE = 20_000
"""Desktops that are gone and kept all the same; then those go that were not looked at for the longest time."""


@dataclass(frozen=True, slots=True)
class MirrorChanges:
    """Changes that the mirror has just taken. ``reloaded``: the database is another one, everything may differ."""

    desktops: Sequence[Desktop] = ()
    hosts: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()
    links: bool = False
    reloaded: bool = False

    def __len__(self) -> int:
        return len(self.desktops) + len(self.hosts) + len(self.images)


@dataclass(slots=True)
class _Rows:
    """Rows by key. ``owned`` are the ids of each owner's desktops that are not gone."""

    most_gone: int
    hosts: dict[str, Host] = field(default_factory=dict)
    copies: dict[tuple[str, str], HostImage] = field(default_factory=dict)
    desktops: dict[str, Desktop] = field(default_factory=dict)
    gone: OrderedDict[str, Desktop] = field(default_factory=OrderedDict)
    owned: dict[str, set[str]] = field(default_factory=dict)
    links: dict[str, ClusterLink] = field(default_factory=dict)
    images: list[Image] | None = None

    def take(self, changes: StatusChanges) -> MirrorChanges:
        """Write the changes down."""
        hosts = {host.name for host in changes.rows.hosts}
        self.hosts |= {host.name: host for host in changes.rows.hosts}
        if changes.host_names is not None:
            removed = self.hosts.keys() - changes.host_names
            hosts |= removed
            for name in removed:
                del self.hosts[name]
        for copy in changes.rows.copies:
            key = (copy.host, copy.image.id)
            if copy.gone:
                self.copies.pop(key, None)
            else:
                self.copies[key] = copy
            self.images = None
        for desktop in changes.rows.desktops:
            self.take_desktop(desktop)
        self.links |= {link.cluster: link for link in changes.links}
        images = frozenset(copy.image.id for copy in changes.rows.copies)
        return MirrorChanges(changes.rows.desktops, frozenset(hosts), images, bool(changes.links))

    def take_desktop(self, desktop: Desktop) -> None:
        if before := self.desktops.pop(desktop.id, None):
            owned = self.owned[before.owner]
            owned.discard(desktop.id)
            if not owned:
                del self.owned[before.owner]
        if desktop.state is DesktopState.GONE:
            self.keep_gone(desktop)
        else:
            self.gone.pop(desktop.id, None)
            self.desktops[desktop.id] = desktop
            self.owned.setdefault(desktop.owner, set()).add(desktop.id)

    def keep_gone(self, desktop: Desktop) -> None:
        self.gone[desktop.id] = desktop
        self.gone.move_to_end(desktop.id)
        if len(self.gone) > self.most_gone:
            self.gone.popitem(last=False)


class StatusMirror:
    """Copy of the database ``status``. It is empty until the first `refresh` succeeds.

    ``on_changes`` is called with what each refresh brought, before anyone who waits for the refresh goes on.
    """

    def __init__(self, status: Status, *, most_gone: int = MOST_GONE) -> None:
        self._status = status
        self._most_gone = most_gone
        self._rows = _Rows(most_gone)
        self._version: int | None = None
        self._refreshes: Batch[None, int] = Batch(self._refresh)
        self._lookups: Batch[str, Desktop | None] = Batch(self._look_up)
        self.on_changes: Callable[[MirrorChanges], None] = lambda changes: None

    @property
    def database(self) -> Database:
        return self._status.database

    @property
    def version(self) -> int:
        """Version of the status up to which all changes are here; 0 before the first refresh."""
        return self._version or 0

    async def refresh(self) -> int:
        """See all that was committed before this call; how many rows had changed. Raises `Unavailable`."""
        return await self._refreshes.do(None)

    async def _refresh(self, waiting: Sequence[None]) -> list[int]:
        version, links = await self._status.heartbeat()
        if self._version is None or version < self._version:
            everything = await self._status.everything()
            self._rows = _Rows(self._most_gone)
            self._rows.take(everything)
            self._version = everything.version
            taken = MirrorChanges(reloaded=True)
        else:
            # When a cluster was heard is written without a version; what the changes say of a link is newer.
            self._rows.links = {link.cluster: link for link in links}
            if version == self._version:
                return [0] * len(waiting)
            changes = await self._status.changes(self._version)
            taken = self._rows.take(changes)
            self._version = changes.version
        self.on_changes(taken)
        return [len(taken)] * len(waiting)

    # Hosts and images

    @property
    def hosts(self) -> list[Host]:
        """Every host, by name."""
        return [host for _, host in sorted(self._rows.hosts.items())]

    def host(self, name: str | None) -> Host | None:
        return self._rows.hosts.get(name or "")

    @property
    def desktops_by_host(self) -> Counter[str]:
        """Number of desktops that have their place on each host and may be running there."""
        counted = (desktop for desktop in self._rows.desktops.values() if desktop.state in COUNTED_STATES)
        return Counter(desktop.host for desktop in counted if desktop.host)

    @property
    def images(self) -> list[Image]:
        """Every image of the cluster once, by name, in the state of its best copy."""
        if self._rows.images is None:
            self._rows.images = catalogue(list(self._rows.copies.values()))
        return self._rows.images

    def image(self, image_id: str) -> Image | None:
        return next((image for image in self.images if image.id == image_id), None)

    @property
    def editable(self) -> frozenset[str]:
        """Ids of the images that an edition host in service has ready."""
        edition = {host.name for host in self._rows.hosts.values() if host.edition and host.state is HostState.READY}
        ready = (copy for copy in self._rows.copies.values() if copy.image.state is CopyState.READY)
        return frozenset(copy.image.id for copy in ready if copy.host in edition)

    @property
    def links(self) -> list[ClusterLink]:
        """The link to each cluster, by its name."""
        return [link for _, link in sorted(self._rows.links.items())]

    # Desktops

    def desktop(self, desktop_id: str) -> Desktop | None:
        """A desktop's row; None before the cluster has spoken of it, and for one that went long ago."""
        if found := self._rows.desktops.get(desktop_id):
            return found
        if found := self._rows.gone.get(desktop_id):
            self._rows.gone.move_to_end(desktop_id)
        return found

    def desktops_of(self, owner: str) -> list[Desktop]:
        """The owner's desktops that are not gone, newest first."""
        return [self._rows.desktops[id] for id in sorted(self._rows.owned.get(owner, ()), reverse=True)]

    def counted_of(self, owner: str) -> frozenset[str]:
        """Ids of the owner's desktops that count against the quota."""
        return frozenset(desktop.id for desktop in self.desktops_of(owner) if desktop.state in COUNTED_STATES)

    async def find_desktops(self, ids: Collection[str]) -> dict[str, Desktop]:
        """Those of these desktops that the cluster ever named, however long they are gone. Raises `Unavailable`."""
        found = {id: self.desktop(id) for id in ids}
        for id in [id for id, desktop in found.items() if desktop is None]:
            found[id] = await self._lookups.do(id)
        return {id: desktop for id, desktop in found.items() if desktop}

    async def _look_up(self, ids: Sequence[str]) -> list[Desktop | None]:
        found = {desktop.id: desktop for desktop in await self._status.desktops(set(ids))}
        self._keep_gone(found.values())
        return [found.get(id) for id in ids]

    def _keep_gone(self, desktops: Iterable[Desktop]) -> None:
        for desktop in desktops:
            # One that is not gone is new here, and comes with the changes.
            if desktop.state is DesktopState.GONE and desktop.id not in self._rows.desktops:
                self._rows.keep_gone(desktop)
