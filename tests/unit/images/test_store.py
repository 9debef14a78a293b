"""The image store: whole images or nothing, whatever dies."""

import asyncio
import hashlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pupitre.domain.image import CopyState, DiskFormat, ImageSpec
from pupitre.errors import Conflict, Invalid, NotFound, SetupError
from pupitre.images.manifest import Manifest
from pupitre.images.store import ImageStore

pytestmark = pytest.mark.anyio
SPEC = ImageSpec(id="one", disk="disk", disk_format=DiskFormat.RAW, memory_mib=64, vcpus=1, kernel="kernel")

BUILDER = """
import sys
from pathlib import Path
from pupitre.images.store import ImageStore
with ImageStore(Path(sys.argv[1])).build("one", "One", "First") as build:
    (build.folder / "half").write_bytes(b"x" * 4096)
    build.progress("Half-way", 0.5)
    print("ready", flush=True)
    sys.stdin.read()
"""


def publish(store: ImageStore, disk: bytes = b"disk", spec: ImageSpec = SPEC) -> Manifest:
    with store.build(spec.id, "One", "First") as build:
        files = {"disk": build.folder / "disk", "kernel": build.folder / "kernel"}
        files["disk"].write_bytes(disk)
        files["kernel"].write_bytes(b"kernel")
        return build.publish(spec, files, "recipe-1")


def builder(root: Path) -> "subprocess.Popen[str]":
    """Another process in the middle of a build."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def blobs(store: ImageStore) -> set[bytes]:
    return {path.read_bytes() for path in (store.root / "blobs/sha256").iterdir()}


def test_published_files_are_named_by_content(tmp_path: Path) -> None:
    """Published files are named by content and readable by all."""
    old = os.umask(0o077)
    try:
        store = ImageStore(tmp_path / "cache/images")
        spec = publish(store).spec
    finally:
        os.umask(old)
    assert store.spec("one") == spec
    assert spec.kernel
    assert spec.disk == hashlib.sha256(b"disk").hexdigest()
    blob = store.blob(spec.disk)
    assert blob.read_bytes() == b"disk"
    assert stat.S_IMODE(blob.stat().st_mode) == 0o444
    for folder in [tmp_path / "cache", *(path for path in blob.parents if path.is_relative_to(store.root))]:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    (copy,) = store.copies()
    assert copy.spec == spec
    assert copy.image.state is CopyState.READY
    assert copy.image.progress is None
    assert list((store.root / "work").iterdir()) == []


def test_killed_build_is_seen_as_failed(tmp_path: Path) -> None:
    """A build is seen while it lives and failed when it was killed."""
    store, process = ImageStore(tmp_path), builder(tmp_path)
    (copy,) = store.copies()
    assert copy.spec is None
    assert copy.image.state is CopyState.FETCHING
    assert (copy.image.progress, copy.image.reason) == (0.5, "Half-way")
    with pytest.raises(Conflict, match="being built"):
        store.remove("one")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (copy,) = store.copies()
    assert copy.image.state is CopyState.FAILED
    assert "Build the image again" in str(copy.image.reason)
    publish(store)
    assert store.copies()[0].image.state is CopyState.READY
    assert list((tmp_path / "work").iterdir()) == []


def test_the_second_builder_waits_for_the_first(tmp_path: Path) -> None:
    first = builder(tmp_path)
    second = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdin
    assert first.poll() is None
    assert ImageStore(tmp_path).copies()[0].image.progress == 0.5
    first.communicate("")
    assert second.stdout
    assert second.stdout.readline() == "ready\n"
    second.communicate("")
    assert first.returncode == second.returncode == 0


def test_a_failed_build_says_why_and_leaves_the_old_image(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    spec = publish(store).spec
    with pytest.raises(ValueError), store.build("one", "One", "First") as build:
        (build.folder / "disk").write_bytes(b"half")
        raise ValueError("the mirror sent nonsense")
    (copy,) = store.copies()
    assert copy.spec == spec
    assert copy.image.state is CopyState.READY
    assert "the mirror sent nonsense" in str(copy.image.reason)
    assert list((tmp_path / "work").iterdir()) == []


def test_a_full_disk_fails_cleanly(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    with (
        pytest.raises(SetupError, match="is full"),
        store.build("one", "One", "First"),
        open("/dev/full", "wb") as full,
    ):
        full.write(b"x")
    assert "is full" in str(store.copies()[0].image.reason)


def test_unnamed_blobs_are_collected_shared_ones_stay(tmp_path: Path) -> None:
    """Blobs that no manifest names are collected and shared ones stay."""
    store = ImageStore(tmp_path)
    publish(store, b"first")
    publish(store, b"second")
    assert blobs(store) == {b"first", b"second", b"kernel"}, "a replaced disk stays until the next build"
    publish(store, b"third", ImageSpec("two", "disk", DiskFormat.RAW, 64, 1, kernel="kernel"))
    assert blobs(store) == {b"second", b"third", b"kernel"}
    store.remove("one")
    assert blobs(store) == {b"third", b"kernel"}
    store.remove("two")
    assert blobs(store) == set()
    assert store.copies() == []


@pytest.mark.parametrize("bad", ["../etc", "", "A", "-x", "a/b", "a" * 49])
def test_ids_are_checked(tmp_path: Path, bad: str) -> None:
    store = ImageStore(tmp_path)
    for call in (store.spec, store.remove):
        with pytest.raises(Invalid):
            call(bad)
    with pytest.raises(NotFound):
        store.blob("../../etc/passwd")
    with pytest.raises(NotFound):
        store.remove("absent")


async def test_every_change_rings(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    async with store.notifier.listen() as listener:
        publish(store)
        await asyncio.wait_for(listener.wait(), 5)
        store.remove("one")
        await asyncio.wait_for(listener.wait(), 5)
