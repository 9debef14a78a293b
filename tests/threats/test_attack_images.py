"""What hosts say of images: only what a publisher has signed reaches students, placement and other hosts."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs

from pupitre.domain.command import CommandState, RegisterHost
from pupitre.domain.host import HostState
from pupitre.domain.image import CopyState, DiskFormat, Image, ImageSpec
from pupitre.domain.signed_manifest import SignedManifest, sign
from pupitre.host.simulation.hypervisor import Behaviour, SimulatedHypervisor
from pupitre.images.manifest import Manifest
from pupitre.images.recipes import recipe
from pupitre.images.signatures import ensure_signed, publisher, read_signed, trusted_keys
from pupitre.images.store import ImageStore
from pupitre.runtime.clock import now_ms
from pupitre.wire.messages import Done
from tests.rigs.hostile_host import hostile_host
from tests.rigs.local_cluster import IMAGE, HostRig, LocalCluster, eventually, local_cluster
from tests.unit.host.test_warnings import host_where_warned

pytestmark = [pytest.mark.anyio, pytest.mark.attack]
BAD = "host-2"
LIE = {"name": "Give me your password", "description": "at evil.example", "memory_mib": 1 << 20, "vcpus": 64}


def genuine(here: LocalCluster) -> SignedManifest:
    signed = read_signed(here.settings.images_dir, IMAGE)
    assert signed is not None
    return signed


def claim(manifest: str = "", **changes: Any) -> dict[str, Any]:
    """A copy of the image of all tests, in words of the host's own."""
    image = {
        "id": IMAGE,
        "state": "ready",
        "since": now_ms() + 10**6,
        "progress": None,
        "reason": None,
        **LIE,
    } | changes
    spec = {"id": image["id"], "disk": "d" * 64, "disk_format": "raw", "memory_mib": 1 << 20, "vcpus": 64}
    return {"image": image, "spec": spec, "manifest": manifest}


async def nobody_else_notices(here: LocalCluster) -> None:
    """The image is as its publisher said, and it starts."""
    [image] = [one for one in await here.status.images() if one.id == IMAGE]
    assert (image.name, image.description, image.memory_mib) == ("Plain", "", 256)
    running = await here.running()
    desktop = await here.status.desktop(running.desktop or "")
    assert desktop is not None
    assert desktop.host == "host-1"


def lies(here: LocalCluster, case: str) -> tuple[list[dict[str, Any]], list[SignedManifest], str]:
    signed = genuine(here)
    text = signed.text.replace('"Plain"', '"Give me your password"').replace("256", "1048576")
    assert text != signed.text
    stranger = sign(text, Ed25519PrivateKey.generate())
    changed = SignedManifest(text, signed.key, signed.signature)
    return {
        "unsigned": ([claim()], [], "not signed"),
        "a digest that was never shown": ([claim("e" * 64)], [], "not signed"),
        "signed by a stranger": ([claim(stranger.digest)], [stranger], "publisher"),
        "changed since it was signed": ([claim(changed.digest)], [changed], "signature is not of this manifest"),
        "of another image": ([claim(signed.digest, id="other")], [signed], "another image"),
        "no id": ([claim(signed.digest, id="../../x")], [signed], "another image"),
    }[case]


@pytest.mark.parametrize(
    "case",
    [
        "unsigned",
        "a digest that was never shown",
        "signed by a stranger",
        "changed since it was signed",
        "of another image",
        "no id",
    ],
)
async def test_false_words_of_an_image_reach_nobody(tmp_path: Path, case: str) -> None:
    async with local_cluster(tmp_path, host_timeout=30) as here:
        await here.add_host("host-1")
        await (await here.add_host(BAD)).crash()
        async with hostile_host(here.settings, BAD) as host:
            copies, manifests, why = lies(here, case)
            shown = [msgspec.to_builtins(one) for one in manifests]
            assert isinstance(await host.say(host.report(full=True, copies=copies, manifests=shown)), Done)
            warned = await host_where_warned(here, BAD, "images_refused")
            assert why in warned.warnings[0].text
            await nobody_else_notices(here)


async def test_an_image_that_is_being_made_has_no_words(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, host_timeout=30) as here:
        await here.add_host("host-1")
        await (await here.add_host(BAD)).crash()
        async with hostile_host(here.settings, BAD) as host:
            made = claim(id="evil", state="fetching", progress=0.5, reason="Give me your password")
            assert isinstance(await host.say(host.report(full=True, copies=[made])), Done)

            async def seen() -> Image | None:
                return await here.status.image("evil")

            await eventually(lambda: _is_there(seen))
            image = await seen()
            assert image is not None
            assert (image.name, image.description, image.reason) == ("evil", "", "It is being made")


async def _is_there(look: Any) -> bool:
    return await look() is not None


async def test_a_real_manifest_gives_the_publishers_words(tmp_path: Path) -> None:
    """Whatever the host says beside it."""
    async with local_cluster(tmp_path, host_timeout=30) as here:
        await here.add_host("host-1")
        await (await here.add_host(BAD)).crash()
        async with hostile_host(here.settings, BAD, memory_mib=16) as host:
            signed = genuine(here)
            report = host.report(full=True, copies=[claim(signed.digest)], manifests=[msgspec.to_builtins(signed)])
            assert isinstance(await host.say(report), Done)
            await host_where_warned(here, BAD)
            await nobody_else_notices(here)


async def elsewhere(here: LocalCluster, images: Path) -> HostRig:
    """A host on a machine of its own, whose images are in ``images``."""
    hypervisor = SimulatedHypervisor(Behaviour.PROMPT, here.settings.home / "serials", None, 65536)
    await hypervisor.open()
    host = HostRig(here.settings.model_copy(update={"host_name": BAD, "image_store": images}), hypervisor)
    here.hosts.append(host)
    await host.start()
    command = await here.ask(RegisterHost(name=BAD, address="127.0.0.1", port=host.console.port))
    await here.outcome(command, CommandState.SUCCEEDED)
    await here.wait_host(BAD, HostState.READY)
    return host


async def test_a_copied_store_is_as_good_as_the_first(tmp_path: Path) -> None:
    """As rsync brings it to another machine, without the publisher's key."""
    async with local_cluster(tmp_path / "cluster") as here:
        shutil.copytree(here.settings.images_dir, tmp_path / "other/images")
        host = await elsewhere(here, tmp_path / "other/images")
        running = await here.running()
        assert set(await host.hypervisor.guests()) == {running.desktop}
        assert not publisher(tmp_path / "other/images").exists()


async def test_another_publisher_is_taken_once_it_is_known(tmp_path: Path) -> None:
    async with local_cluster(tmp_path / "cluster") as here:
        store = ImageStore(tmp_path / "other/images")
        with store.build("theirs", "Theirs", "") as build:
            disk = build.folder / "disk"
            disk.write_bytes(bytes(1 << 20))
            spec = ImageSpec("theirs", "disk", DiskFormat.RAW, memory_mib=256, vcpus=1)
            store.publish(Manifest(spec, "Theirs", "", now_ms()), {"disk": disk})
        host = await elsewhere(here, store.root)
        warned = await host_where_warned(here, BAD, "images_refused")
        assert "publisher" in warned.warnings[0].text
        known = here.settings.pki_dir / "publishers"
        known.mkdir()
        shutil.copy(publisher(store.root) / "publisher.pub", known / "other-machine.pub")
        host.agent.report_all()
        await host_where_warned(here, BAD)
        image = await here.status.image("theirs")
        assert image is not None
        assert (image.name, image.state) == ("Theirs", CopyState.READY)


async def test_images_of_earlier_versions_are_signed_on_sight(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        root = here.settings.images_dir
        shutil.rmtree(root / "signatures")
        await here.add_host("host-1")
        warned = await host_where_warned(here, "host-1", "images_refused")
        assert "pupitre image sign" in warned.warnings[0].text
        assert ensure_signed(root) == [IMAGE]
        assert ensure_signed(root) == []
        here.hosts[0].agent.report_all()
        await host_where_warned(here, "host-1")
        await here.running()


def test_build_signs_what_an_earlier_version_built(tmp_path: Path, images: ImageStore) -> None:
    store = ImageStore(tmp_path / "images")
    for folder in ("manifests", "blobs"):
        shutil.copytree(images.root / folder, store.root / folder)
    recipe("tiny").build(store)
    assert read_signed(store.root, "tiny") is not None


def test_the_private_key_is_not_in_what_is_copied(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    with store.build("one", "One", "") as build:
        disk = build.folder / "disk"
        disk.write_bytes(bytes(1 << 20))
        build.publish(ImageSpec("one", "disk", DiskFormat.RAW, 256, 1), {"disk": disk})
    assert not [path for path in store.root.rglob("*") if path.is_file() and b"PRIVATE" in path.read_bytes()]
    key = publisher(store.root) / "publisher.key"
    assert b"PRIVATE" in key.read_bytes()
    assert key.stat().st_mode & 0o777 == 0o600
    signed = read_signed(store.root, "one")
    assert signed is not None
    assert store.manifest("one").name in signed.text
    store.remove("one")
    assert not list((store.root / "signatures").iterdir())


def test_missing_publisher_key_is_never_replaced_unasked(tmp_path: Path) -> None:
    """A new key would sign what no cluster takes, as what it trusts is the old one's public half."""
    store = ImageStore(tmp_path / "images")

    def publish(name: str) -> None:
        with store.build(name, name, "") as build:
            disk = build.folder / "disk"
            disk.write_bytes(bytes(1 << 20))
            build.publish(ImageSpec(name, "disk", DiskFormat.RAW, 256, 1), {"disk": disk})

    publish("one")
    key, public = (publisher(store.root) / name for name in ("publisher.key", "publisher.pub"))
    kept = key.rename(tmp_path / "kept")
    with capture_logs() as logs:
        publish("two")
    assert not key.exists()
    assert read_signed(store.root, "two") is None
    [said] = [line["reason"] for line in logs if line["event"] == "image_not_signed"]
    assert f"Bring back {key}" in said
    shutil.copy(kept, key)
    assert ensure_signed(store.root) == ["two"]
    key.unlink()

    public.rename(public.with_name("former.pub"))
    publish("three")
    trusted = trusted_keys(publisher(store.root))
    signed = [read_signed(store.root, name) for name in ("one", "two", "three")]
    assert len({one.key for one in signed if one}) == 2
    assert all(one and one.key in trusted for one in signed)
    shutil.copy(kept, key)
    with capture_logs() as logs:
        publish("four")
    assert read_signed(store.root, "four") is None
    assert any("belongs to another key" in str(line.get("reason")) for line in logs)
