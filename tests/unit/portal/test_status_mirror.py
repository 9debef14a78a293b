"""Status mirror: it shows what the database holds, after every way in which that can change."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pupitre.domain.desktop import COUNTED_STATES, Desktop, DesktopState
from pupitre.domain.host import Host, HostState
from pupitre.domain.image import CopyState
from pupitre.domain.status import ClusterLink, HostImage, Position, Rows
from pupitre.errors import Unavailable
from pupitre.portal.live.status_mirror import MirrorChanges, StatusMirror
from pupitre.store.schema import status_counter
from pupitre.store.status import SeenKeys, Status
from tests.rigs import databases
from tests.rigs.portal_site import an_image

pytestmark = pytest.mark.anyio

HOST = Host("host-1", HostState.READY, "127.0.0.1", 1, False, since=1)
DESKTOP = Desktop("d1", "u1", "tiny", "host-1", DesktopState.RUNNING, since=1, created=1, boot=1)
COPY = HostImage("host-1", an_image("tiny", "Tiny", since=1))
EVERYTHING = Rows(hosts=(HOST,), copies=(COPY,), desktops=(DESKTOP,))


async def mirrors_agree(status: Status, mirror: StatusMirror) -> None:
    """What the mirror has taken change by change is what one has that reads the database now."""
    await mirror.refresh()
    fresh = StatusMirror(status)
    await fresh.refresh()
    assert mirror.version == fresh.version
    assert (mirror.hosts, mirror.images, mirror.links) == (fresh.hosts, fresh.images, fresh.links)
    assert mirror.editable == fresh.editable
    assert mirror.desktops_by_host == fresh.desktops_by_host
    for owner in ("u1", "u2"):
        assert mirror.desktops_of(owner) == fresh.desktops_of(owner)
        assert mirror.counted_of(owner) == fresh.counted_of(owner)


async def test_changes_lead_where_a_first_read_leads(tmp_path: Path, each_database: str) -> None:
    async with databases.status(tmp_path) as status:
        mirror = StatusMirror(status)
        await mirrors_agree(status, mirror)
        other = replace(DESKTOP, id="d2", owner="u2", state=DesktopState.FAILED)
        edition = replace(HOST, name="host-2", edition=True)
        wanted = replace(COPY, host="host-2", image=replace(COPY.image, state=CopyState.WANTED))
        steps = [
            EVERYTHING,
            Rows(desktops=(other, replace(DESKTOP, id="d3"))),
            Rows(hosts=(edition,), copies=(wanted,)),
            Rows(copies=(replace(wanted, image=COPY.image),)),
            Rows(desktops=(replace(DESKTOP, state=DesktopState.GONE),)),
            Rows(copies=(replace(COPY, gone=True),)),
        ]
        for rows in steps:
            await status.apply("main", rows)
            await mirrors_agree(status, mirror)
        assert mirror.editable == {"tiny"}
        await status.set_link(ClusterLink("main", True, 4))
        await mirrors_agree(status, mirror)
        await status.heard("main", 17, Position(1, 1))
        await mirrors_agree(status, mirror)
        assert [link.heard for link in mirror.links] == [17]
        await status.retain("main", SeenKeys(hosts={"host-2"}), Position(1, 2))
        await mirrors_agree(status, mirror)
        assert [host.name for host in mirror.hosts] == ["host-2"]
        assert mirror.images == []


states = st.sampled_from(DesktopState)
desktop_rows = st.builds(
    replace, st.just(DESKTOP), id=st.sampled_from("abcde"), owner=st.sampled_from(["u1", "u2"]), state=states
)


@settings(max_examples=25)
@given(st.lists(st.lists(desktop_rows, max_size=4, unique_by=lambda desktop: desktop.id), max_size=8))
async def test_each_owner_sees_their_desktops(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[Desktop]]
) -> None:
    async with databases.status(tmp_path_factory.mktemp("mirror")) as status:
        mirror = StatusMirror(status)
        held: dict[str, Desktop] = {}
        for batch in batches:
            await status.apply("main", Rows(desktops=tuple(batch)))
            held |= {desktop.id: desktop for desktop in batch}
            await mirror.refresh()
        for owner in ("u1", "u2"):
            there = [one for one in held.values() if one.owner == owner and one.state is not DesktopState.GONE]
            assert mirror.desktops_of(owner) == sorted(there, key=lambda one: one.id, reverse=True)
            assert mirror.counted_of(owner) == {one.id for one in there if one.state in COUNTED_STATES}
        assert await mirror.find_desktops("abcde") == held


async def test_gone_desktops_are_found_however_long_they_are_gone(tmp_path: Path) -> None:
    gone = [replace(DESKTOP, id=f"d{number}", state=DesktopState.GONE) for number in range(5)]
    async with databases.status(tmp_path) as status:
        mirror = StatusMirror(status, most_gone=2)
        await mirror.refresh()
        await status.apply("main", Rows(desktops=tuple(gone)))
        await mirror.refresh()
        assert [mirror.desktop(one.id) for one in gone] == [None, None, None, gone[3], gone[4]]
        assert await mirror.find_desktops([one.id for one in gone] + ["nobody"]) == {one.id: one for one in gone}
        assert mirror.desktops_of("u1") == []


async def test_changes_are_told_once_before_the_refresh_returns(tmp_path: Path) -> None:
    told: list[MirrorChanges] = []
    async with databases.status(tmp_path) as status:
        mirror = StatusMirror(status)
        mirror.on_changes = told.append
        await mirror.refresh()
        assert [changes.reloaded for changes in told] == [True]
        await status.apply("main", EVERYTHING)
        assert await mirror.refresh() == 3
        assert await mirror.refresh() == 0
        assert told[1:] == [MirrorChanges((DESKTOP,), frozenset({"host-1"}), frozenset({"tiny"}))]


async def test_database_whose_version_went_back_is_read_anew(tmp_path: Path) -> None:
    """Another database came in its place: a backup, or an empty one."""
    told: list[MirrorChanges] = []
    async with databases.status(tmp_path) as status:
        await status.apply("main", EVERYTHING)
        mirror = StatusMirror(status)
        await mirror.refresh()
        mirror.on_changes = told.append
        await status.retain("main", SeenKeys(), Position())
        async with status.database.write() as connection:
            await connection.execute(status_counter.update().values(value=0))
        await mirror.refresh()
        assert [changes.reloaded for changes in told] == [True]
        assert (mirror.hosts, mirror.images, mirror.desktops_of("u1")) == ([], [], [])


async def test_failed_refresh_keeps_the_rows(tmp_path: Path) -> None:
    async with databases.status(tmp_path) as status:
        await status.apply("main", EVERYTHING)
        mirror = StatusMirror(status)
        await mirror.refresh()
        async with databases.out_of_order(tmp_path / "status.sqlite"):
            with pytest.raises(Unavailable):
                await mirror.refresh()
            assert mirror.hosts == [HOST]
        await mirror.refresh()
