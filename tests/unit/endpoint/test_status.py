"""The mirror of the cluster: whatever is lost, doubled or late on the way, it is right again with the next mark."""

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pupitre.domain.desktop import Desktop, DesktopState
from pupitre.domain.host import Host, HostState
from pupitre.domain.image import CopyState, Image
from pupitre.domain.status import ClusterLink, HostImage, Position, Rows
from pupitre.endpoint.status_mirror import StatusMirror
from pupitre.errors import NoAnswer
from pupitre.store.sql.engine import Database
from pupitre.store.status import Status
from pupitre.wire.messages import Changed, GetPage, Page, StatusPosition
from tests.rigs import databases

pytestmark = pytest.mark.anyio

DESKTOP = Desktop("d0", "u", "plain", "h0", DesktopState.RUNNING, since=1, created=1, boot=1)
HOST = Host("h0", HostState.READY, "127.0.0.1", 1, False, since=1)
COPY = HostImage("h0", Image("i0", "Plain", "", CopyState.READY, since=1))
PAGE = 2
LIVE = [state for state in DesktopState if state is not DesktopState.GONE]


@dataclass
class Cluster:
    """A cluster as its readers see it: rows with the number of their last change, and what is on its way to them."""

    epoch: int
    sequence: int = 0
    published: int = 0
    rows: dict[tuple[str, str], tuple[int, Host | HostImage | Desktop]] = field(default_factory=dict)
    on_the_way: list[Changed | StatusPosition] = field(default_factory=list)
    reachable: bool = True

    def put(self, row: Host | HostImage | Desktop) -> None:
        self.sequence += 1
        self.rows[_key(row)] = (self.sequence, row)

    def drop_host(self, name: str) -> None:
        """A host that is taken away is told by a mark: who reads it asks for everything."""
        if self.rows.pop(("hosts", name), None):
            self.sequence += 1
            self.publish()
            self.on_the_way[-1:] = [self.mark()]

    def publish(self) -> None:
        changed = [row for number, row in self.rows.values() if number > self.published]
        news = Changed(epoch=self.epoch, after=self.published, sequence=self.sequence, rows=_rows(changed))
        self.published = self.sequence
        self.on_the_way.append(news)

    def mark(self) -> StatusPosition:
        return StatusPosition(epoch=self.epoch, sequence=self.published)

    async def page(self, ask: GetPage) -> Page:
        if not self.reachable:
            raise NoAnswer("The cluster is away.")
        found = sorted(
            (name, row)
            for (section, name), (_, row) in self.rows.items()
            if section == ask.section and not _is_gone(row) and name > (ask.after or "")
        )[:PAGE]
        following = found[-1][0] if len(found) == PAGE else None
        rows = _rows([row for _, row in found])
        return Page(epoch=self.epoch, sequence=self.sequence, rows=rows, next=following)


def _key(row: Host | HostImage | Desktop) -> tuple[str, str]:
    if isinstance(row, Host):
        return "hosts", row.name
    return ("desktops", row.id) if isinstance(row, Desktop) else ("copies", f"{row.host}/{row.image.id}")


def _is_gone(row: Host | HostImage | Desktop) -> bool:
    if isinstance(row, Desktop):
        return row.state is DesktopState.GONE
    return isinstance(row, HostImage) and row.gone


def _rows(rows: list[Host | HostImage | Desktop]) -> Rows:
    return Rows(
        tuple(row for row in rows if isinstance(row, Host)),
        tuple(row for row in rows if isinstance(row, HostImage)),
        tuple(row for row in rows if isinstance(row, Desktop)),
    )


async def mirrored(status: Status) -> set[Host | HostImage | Desktop]:
    """All that is there according to the status database."""
    rows = (await status.changes(0)).rows
    found: set[Host | HostImage | Desktop] = {*rows.hosts, *rows.copies, *rows.desktops}
    return {row for row in found if not _is_gone(row)}


NUMBERS = st.integers(0, 4)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("desktop"), NUMBERS, st.sampled_from(list(DesktopState))),
        st.tuples(st.just("copy"), NUMBERS, st.booleans()),
        st.tuples(st.just("host"), NUMBERS, st.sampled_from(list(HostState))),
        st.tuples(st.just("drop host"), NUMBERS, st.none()),
        st.tuples(st.just("publish"), NUMBERS, st.none()),
        st.tuples(st.just("mark"), NUMBERS, st.none()),
        st.tuples(st.just("deliver"), NUMBERS, st.none()),  # not always the oldest
        st.tuples(st.just("double"), NUMBERS, st.none()),
        st.tuples(st.just("lose"), NUMBERS, st.none()),
        st.tuples(st.just("reach"), NUMBERS, st.booleans()),
        st.tuples(st.just("restart"), NUMBERS, st.none()),
        st.tuples(st.just("apply_early"), NUMBERS, st.none()),
    ),
    max_size=30,
)


async def run_steps(steps: list[tuple[str, int, object]], status: Status, epoch: int) -> None:
    cluster = Cluster(epoch)
    mirror = StatusMirror("main", status, cluster.page)
    await mirror.open()
    await mirror.mark(cluster.mark())

    async def deliver(news: Changed | StatusPosition) -> None:
        await (mirror.mark(news) if isinstance(news, StatusPosition) else mirror.change(news))

    for what, number, value in steps:
        there = cluster.on_the_way
        if isinstance(value, DesktopState):
            cluster.put(replace(DESKTOP, id=f"d{number}", state=value))
        elif isinstance(value, HostState):
            cluster.put(replace(HOST, name=f"h{number}", state=value))
        elif what == "copy":
            cluster.put(replace(COPY, host=f"h{number}", gone=bool(value)))
        elif what == "drop host":
            cluster.drop_host(f"h{number}")
        elif what == "publish":
            cluster.publish()
        elif what == "mark":
            there.append(cluster.mark())
        elif what == "reach":
            cluster.reachable = bool(value)
        elif what == "restart":
            cluster.epoch += 1
        elif what == "apply_early":
            known = [row for _, row in cluster.rows.values() if isinstance(row, Desktop)]
            await mirror.apply_early(_rows([*known]), Position(cluster.epoch, cluster.sequence))
        elif there and what == "double":
            await deliver(there[number % len(there)])
        elif there:
            news = there.pop(number % len(there))
            if what == "deliver":
                await deliver(news)

    cluster.reachable = True
    cluster.publish()
    await mirror.mark(cluster.mark())
    assert await mirrored(status) == {row for _, row in cluster.rows.values() if not _is_gone(row)}
    assert await status.position("main") == Position(cluster.epoch, cluster.sequence)


def test_one_mark_mends_whatever_was_lost_doubled_or_late(tmp_path: Path) -> None:
    address = databases.url(tmp_path, "status")
    epoch = 0
    with asyncio.Runner() as runner:
        status = Status(Database(address, notify_dir=tmp_path / "notify"))
        runner.run(status.set_link(ClusterLink("main", True, 1)))

        @settings(max_examples=60, deadline=None)
        @given(STEPS)
        def any_steps(steps: list[tuple[str, int, object]]) -> None:
            nonlocal epoch
            epoch += 1000
            runner.run(run_steps(steps, status, epoch))

        try:
            any_steps()
        finally:
            runner.run(status.database.close())


async def test_confirmation_of_mirror_changes_no_row(tmp_path: Path) -> None:
    """When the mirror was whole is written beside it and nothing else is said."""
    async with databases.status(tmp_path) as status:
        await status.set_link(ClusterLink("main", True, 1))

        async def heard() -> int:
            (link,) = await status.links()
            return link.heard

        cluster = Cluster(5)
        mirror = StatusMirror("main", status, cluster.page, confirm_every=0)
        cluster.put(DESKTOP)
        cluster.publish()
        cluster.reachable = False
        await mirror.mark(cluster.mark())
        assert await heard() == 0  # the pages were not read: nobody knows how it stands
        cluster.reachable = True
        await mirror.mark(cluster.mark())
        first = await heard()
        assert first > 0
        version = await status.version()
        await mirror.mark(cluster.mark())
        assert await heard() >= first
        assert await status.version() == version
        rare = StatusMirror("main", status, cluster.page, confirm_every=60_000)
        await rare.open()
        await rare.mark(cluster.mark())
        once = await heard()
        await rare.mark(cluster.mark())
        assert await heard() == once


async def test_rows_of_a_cluster_that_was_deposed_are_not_foretold(tmp_path: Path) -> None:
    async with databases.status(tmp_path) as status:
        await status.set_link(ClusterLink("main", True, 1))
        cluster = Cluster(5)
        cluster.put(DESKTOP)
        cluster.publish()
        mirror = StatusMirror("main", status, cluster.page)
        await mirror.mark(cluster.mark())
        await mirror.apply_early(Rows(desktops=(replace(DESKTOP, state=DesktopState.LOST),)), Position(4, 99))
        assert await mirrored(status) == {DESKTOP}


async def test_row_applied_early_is_not_written_again_or_undone(
    tmp_path: Path,
) -> None:
    """What was written ahead is not written again nor undone by the change it was ahead of."""
    async with databases.status(tmp_path) as status:
        await status.set_link(ClusterLink("main", True, 1))
        cluster = Cluster(5)
        mirror = StatusMirror("main", status, cluster.page)
        await mirror.mark(cluster.mark())
        cluster.put(replace(DESKTOP, state=DesktopState.BOOTING))
        cluster.publish()
        cluster.put(DESKTOP)
        cluster.publish()
        booting, running = cluster.on_the_way
        await mirror.apply_early(Rows(desktops=(DESKTOP,)), Position(5, cluster.sequence))
        version = await status.version()
        for change in (booting, running):
            assert isinstance(change, Changed)
            await mirror.change(change)
            assert await mirrored(status) == {DESKTOP}, "never back to what was before"
        assert await status.version() == version, "nothing was written"
        ended = replace(DESKTOP, state=DesktopState.STOPPING)
        cluster.put(ended)
        cluster.publish()
        last = cluster.on_the_way[-1]
        assert isinstance(last, Changed)
        await mirror.change(last)
        assert await mirrored(status) == {ended}
        assert await status.position("main") == Position(5, cluster.sequence)
