"""What a file costs is what is in it, and what is published is what the file held when it was at rest."""

import os
import subprocess
import threading
from pathlib import Path

import pytest

from pupitre.domain.image import DiskFormat
from pupitre.errors import HostileImage, Invalid
from pupitre.images.importing.importer import import_image
from pupitre.images.store import ImageStore
from tests.rigs.image_command import create


@pytest.mark.timeout(120)
def test_sparse_disk_of_1_tib_costs_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(1 << 40)
        for at in (0, 1 << 39, (1 << 40) - 512):
            file.seek(at)
            file.write(b"content!" * 64)
    store = ImageStore(tmp_path / "images")
    spec = import_image(store, path).spec
    assert (spec.disk_format, spec.disk_gib) == (DiskFormat.QCOW2, 1024)
    blob = store.blob(spec.disk)
    assert blob.stat().st_size < 1 << 30
    command: list[str | Path] = ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", blob, path]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("change", ["cut", "grown", "written"])
def test_source_that_changes_while_copied_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(1 << 20) * 8)
    done = threading.Event()

    def meanwhile(step: str, fraction: float) -> None:
        if step == "Copying the image" and fraction > 0.2 and not done.is_set():
            done.set()
            with path.open("r+b") as file:
                if change == "cut":
                    file.truncate(1 << 20)
                else:
                    file.seek(0, os.SEEK_END if change == "grown" else os.SEEK_SET)
                    file.write(bytes(512))

    store = ImageStore(tmp_path / "images")
    with pytest.raises(Invalid, match="while it was copied"):
        import_image(store, path, progress=meanwhile)
    assert done.is_set()
    (copy,) = store.copies()
    assert copy.spec is None


def test_qcow2_cut_short_is_refused(tmp_path: Path) -> None:
    raw, path = tmp_path / "content.raw", tmp_path / "disk.qcow2"
    raw.write_bytes(os.urandom(4 << 20))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True)
    os.truncate(path, path.stat().st_size - (1 << 20))
    with pytest.raises(HostileImage, match=r"cut off|end of the file"):
        import_image(ImageStore(tmp_path / "images"), path)


def test_image_that_arrives_by_copy_is_ready_when_whole(tmp_path: Path) -> None:
    origin, store = ImageStore(tmp_path / "origin"), ImageStore(tmp_path / "images")
    spec = import_image(origin, create(tmp_path / "disk.img"), new_id="lab").spec
    (store.root / "blobs/sha256").mkdir(parents=True)
    (store.root / "manifests").mkdir()
    manifest = (origin.root / "manifests/lab.json").read_bytes()
    (store.root / "manifests/lab.json").write_bytes(manifest)
    blob, whole = store.root / "blobs/sha256" / spec.disk, origin.blob(spec.disk).read_bytes()
    for part in (None, 0, len(whole) // 2, len(whole)):
        if part is not None:
            blob.write_bytes(whole[:part])
        (copy,) = store.copies()
        assert (copy.spec is not None) == (part == len(whole))
        assert copy.image.state == ("ready" if part == len(whole) else "fetching")
