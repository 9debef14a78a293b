"""Threat 10: a name that comes from outside never becomes a path to something else."""

import asyncio
import os
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pupitre.config import Settings
from pupitre.domain.image import DiskFormat, ImageSpec
from pupitre.errors import HypervisorError, ImageFault, PupitreError, SetupError
from pupitre.host.hypervisor.overlays import Overlays
from pupitre.images.store import ImageStore
from pupitre.pki import issuing
from pupitre.portal.identity.sessions import COOKIE
from pupitre.store.accounts import SessionKind
from tests.rigs.portal_site import Site, open_site

pytestmark = pytest.mark.anyio

CANARY = "nobody-reads-or-touches-me"
HOSTILE = (
    "../canary", "../../canary", "..", ".", "", "/etc/shadow", "a/../../canary", "a/b", "..\\canary", "canary\0",
    "~root", "canary\n", "%2e%2e%2fcanary", "..;/canary", "-f", "--help", "\u2025/canary", "\uff0e\uff0e\uff0fcanary",
    "x" * 300, "\ud800",
)  # fmt: skip
names = st.text(max_size=60) | st.sampled_from(HOSTILE) | st.from_regex(r"(\.\./)*[a-z/]{1,20}", fullmatch=True)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file beside everything that the test makes; and what lies there stays as it is."""
    file = tmp_path / "canary"
    file.write_text(CANARY)
    folder = tmp_path / "inside"
    folder.mkdir()
    yield folder
    assert file.read_text() == CANARY
    assert sorted(path.name for path in tmp_path.iterdir()) == ["canary", "inside"]


def test_a_desktops_disk_has_no_name_but_its_id(canary: Path) -> None:
    overlays = Overlays(canary / "overlays")
    overlays.open()

    @settings(max_examples=300, deadline=None)
    @given(names)
    def refused(name: str) -> None:
        for work in (overlays.ensure(name, None, None, 1), overlays.ensure_gone(name)):
            with pytest.raises(HypervisorError):
                runner.run(work)

    with asyncio.Runner() as runner:
        refused()
    assert list(overlays.folder.iterdir()) == []


async def test_a_link_in_place_of_a_disk_is_not_followed(canary: Path) -> None:
    overlays = Overlays(canary / "overlays")
    overlays.open()
    desktop, other = str(uuid.uuid4()), str(uuid.uuid4())
    theirs = await overlays.ensure(other, None, None, 1)
    for target in (canary.parent / "canary", theirs):
        overlays.path(desktop).symlink_to(target)
        with pytest.raises(ImageFault):
            await overlays.ensure(desktop, None, None, 1)
        await overlays.ensure_gone(desktop)
        assert target.exists()
    # One that leads nowhere is replaced, and nothing comes to be where it led.
    overlays.path(desktop).symlink_to(canary / "nowhere")
    made = await overlays.ensure(desktop, None, None, 1)
    assert not made.is_symlink()
    assert not (canary / "nowhere").exists()


async def test_links_that_come_and_go_meanwhile_are_not_followed(canary: Path) -> None:
    """The swap: whoever can write there exchanges disk and link as fast as they can."""
    overlays = Overlays(canary / "overlays")
    overlays.open()
    desktop = str(uuid.uuid4())
    path, target = overlays.path(desktop), canary.parent / "canary"
    ended = asyncio.Event()

    def swap() -> None:
        link = overlays.folder / ".link"
        while not ended.is_set():
            with suppress(FileNotFoundError):
                link.symlink_to(target)
                os.replace(link, path)
                path.unlink()

    swapping = asyncio.create_task(asyncio.to_thread(swap))
    for _ in range(12):
        with suppress(ImageFault):
            await overlays.ensure(desktop, None, None, 1)
        await overlays.ensure_gone(desktop)
    ended.set()
    await swapping
    assert target.read_text() == CANARY


async def test_what_someone_else_put_beside_the_disks_is_left_alone(canary: Path) -> None:
    overlays = Overlays(canary / "overlays")
    overlays.open()
    desktop = str(uuid.uuid4())
    await overlays.ensure(desktop, None, None, 1)
    for name in ("notes.qcow2", "-f.qcow2", "a b.qcow2"):
        (overlays.folder / name).touch()
    assert overlays.all() == {desktop}


def test_image_and_blob_have_one_name_each(canary: Path) -> None:
    """An image has no name but its id and a blob none but its digest."""
    store = ImageStore(canary / "images")
    spec = ImageSpec("tiny", "disk", DiskFormat.RAW, 64, 1)
    with store.build("tiny", "Tiny", "") as build:
        disk = build.folder / "disk"
        disk.write_bytes(bytes(512))
        build.publish(spec, {"disk": disk})

    @settings(max_examples=300, deadline=None)
    @given(names.filter(lambda name: name != "tiny"))
    def refused(name: str) -> None:
        for work in (store.manifest, store.spec, store.blob, store.remove):
            with pytest.raises(PupitreError):
                work(name)

    refused()
    assert store.blob(store.spec("tiny").disk).read_bytes() == bytes(512)
    assert [copy.image.id for copy in store.copies()] == ["tiny"]


def test_a_link_in_place_of_a_blob_is_not_given_to_a_guest(canary: Path) -> None:
    store = ImageStore(canary / "images")
    with store.build("tiny", "Tiny", "") as build:
        disk = build.folder / "disk"
        disk.write_bytes(bytes(512))
        build.publish(ImageSpec("tiny", "disk", DiskFormat.RAW, 64, 1), {"disk": disk})
    blob = store.blob(store.spec("tiny").disk)
    blob.unlink()
    blob.symlink_to(canary.parent / "canary")
    with pytest.raises(PupitreError):
        store.blob(blob.name)
    store.remove("tiny")
    assert not blob.is_symlink()


def test_a_certificate_is_issued_to_a_role_and_nowhere_else(canary: Path) -> None:
    settings_ = Settings(home=canary / "home")

    @settings(max_examples=200, deadline=None)
    @given(names | names.map(lambda name: f"host-{name}").filter(lambda role: not issuing._ROLE.fullmatch(role)))
    def refused(role: str) -> None:
        with pytest.raises(SetupError):
            issuing.ensure_certificate(settings_, role)

    refused()
    assert not (canary / "home").exists()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path / "home") as site:
        yield site


async def test_no_address_of_the_website_leads_out_of_its_folders(site: Site) -> None:
    """As a hostile client writes them: no library of ours tidies the path first."""
    (site.settings.home / "canary").write_text(CANARY)
    depth = "/.." * 12
    home = str(site.settings.home)
    ways = (
        "/static",
        "/gateway",
        "/gateway/v1/screenshot",
        "/gateway/v1/console",
        "/api/v1/images",
        "/api/v1/desktops",
        "",
    )
    tails = (
        f"{depth}{home}/canary", f"/..%2f..%2f..%2f..%2f..%2f..%2f..{home}/canary", f"/..;/..;{home}/canary",
        f"//{home}/canary", f"/%2e%2e{depth}{home}/canary", f"/..%5c..%5c{home}/canary", f"/%00{home}/canary",
        f"{depth}/etc/passwd", f"/%252e%252e%252f{home}/canary",
    )  # fmt: skip

    def ask(path: str) -> bytes:
        with socket.create_connection(("127.0.0.1", site.settings.portal_port), timeout=20) as caller:
            caller.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            heard = b""
            while part := caller.recv(1 << 16):
                heard += part
        return heard

    for way in ways:
        for tail in tails:
            heard = await asyncio.to_thread(ask, way + tail)
            assert CANARY.encode() not in heard, way + tail
            assert b"root:" not in heard, way + tail
            assert heard[9:12] in {b"303", b"307", b"400", b"401", b"403", b"404", b"405"}, (way + tail, heard[:100])
            if heard[9:10] == b"3":
                assert b"\r\nlocation: /signin" in heard.lower() or site.url.encode() in heard, heard


ELSEWHERE = (
    "//evil.example", "//evil.example/%2f..", "///evil.example", "/%2f%2fevil.example/", "/\\evil.example",
    "/%5cevil.example", "/%5c%5cevil.example/..", "/..;//evil.example", "/.%2e//evil.example", "/%09//evil.example",
    "/@evil.example", "/http://evil.example", "/https:evil.example", "/%0d%0aLocation:%20http://evil.example",
    "/?next=//evil.example", "/?next=https://evil.example", "/evil.example%2f..//", "/..%2f//evil.example/",
)  # fmt: skip


@pytest.mark.attack
async def test_no_path_redirects_to_another_site(site: Site) -> None:
    """Threat 4, for a stranger and for someone who is signed in."""
    session = await site.session("student", SessionKind.COOKIE)

    def ask(target: str, cookie: str) -> bytes:
        with socket.create_connection(("127.0.0.1", site.settings.portal_port), timeout=20) as caller:
            host = site.url.partition("//")[2]
            head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\n{cookie}Connection: close\r\n\r\n"
            caller.sendall(head.encode())
            heard = b""
            while b"\r\n\r\n" not in heard and (part := caller.recv(1 << 16)):
                heard += part
        return heard.partition(b"\r\n\r\n")[0]

    redirects = 0
    for way in (
        "",
        "/static",
        "/gateway",
        "/gateway/v1/console",
        "/api/v1",
        "/api/v1/desktops",
        "/signin",
        "/desktops",
    ):
        for tail in ELSEWHERE:
            for cookie in ("", f"Cookie: {COOKIE}={session}\r\n"):
                head = await asyncio.to_thread(ask, way + tail, cookie)
                assert head[:10] in {b"HTTP/1.1 2", b"HTTP/1.1 3", b"HTTP/1.1 4"}, (way + tail, head)
                for line in head.lower().split(b"\r\n")[1:]:
                    name, _, value = line.partition(b":")
                    if name in {b"location", b"refresh", b"content-location"}:
                        redirects += 1
                        ours = value.strip().removeprefix(site.url.encode())
                        assert ours.startswith(b"/"), (way + tail, head)
                        assert not ours.startswith(b"//"), (way + tail, head)
                        assert b"\\" not in ours, (way + tail, head)
    assert redirects, "someone who is not signed in is led to the sign-in page"
