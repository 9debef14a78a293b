"""Overlays: whole or not there, with `qemu-img` itself, on a full disk too."""

import asyncio
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from pupitre.errors import HypervisorError, ImageFault
from pupitre.host.hypervisor.overlays import Overlays

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def overlays(tmp_path: Path) -> Overlays:
    made = Overlays(tmp_path / "overlays")
    made.open()
    return made


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"system" + bytes((1 << 20) - 6))
    return path


def described(path: Path) -> dict[str, object]:
    done = subprocess.run(["qemu-img", "info", "--output=json", "-f", "qcow2", path], capture_output=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


async def test_an_overlay_lies_on_its_image_with_its_format_said(overlays: Overlays, image: Path) -> None:
    desktop = str(uuid.uuid4())
    path = await overlays.ensure(desktop, image, "raw", 10)
    found = described(path)
    assert found["backing-filename"] == str(image)
    assert found["backing-filename-format"] == "raw"
    assert found["virtual-size"] == 1 << 20
    assert path.stat().st_mode & 0o777 == 0o600


async def test_without_an_image_it_is_an_empty_disk(overlays: Overlays) -> None:
    found = described(await overlays.ensure(str(uuid.uuid4()), None, None, 3))
    assert found["virtual-size"] == 3 << 30
    assert "backing-filename" not in found


async def test_asked_again_it_is_the_same_file(overlays: Overlays, image: Path) -> None:
    desktop = str(uuid.uuid4())
    first = (await overlays.ensure(desktop, image, "raw", 10)).stat()
    paths = await asyncio.gather(*(overlays.ensure(desktop, image, "raw", 10) for _ in range(3)))
    assert {path.stat().st_ino for path in paths} == {first.st_ino}
    assert overlays.all() == {desktop}


async def test_gone_may_be_repeated(overlays: Overlays) -> None:
    desktop = str(uuid.uuid4())
    await overlays.ensure(desktop, None, None, 1)
    await overlays.ensure_gone(desktop)
    await overlays.ensure_gone(desktop)
    assert overlays.all() == set()
    assert list(overlays.folder.iterdir()) == []


async def test_a_damaged_one_is_said_to_be(overlays: Overlays) -> None:
    desktop = str(uuid.uuid4())
    overlays.path(desktop).write_bytes(b"QFI\xfb" + os.urandom(200))
    with pytest.raises(ImageFault, match="damaged"):
        await overlays.ensure(desktop, None, None, 1)
    await overlays.ensure_gone(desktop)
    await overlays.ensure(desktop, None, None, 1)


async def test_a_missing_image_leaves_nothing_half_made(overlays: Overlays, tmp_path: Path) -> None:
    with pytest.raises(ImageFault):
        await overlays.ensure(str(uuid.uuid4()), tmp_path / "none", "qcow2", 1)
    assert list(overlays.folder.iterdir()) == []


async def test_what_a_killed_process_left_is_swept(overlays: Overlays) -> None:
    (overlays.folder / f".{uuid.uuid4()}.x.part").touch()
    assert overlays.all() == set()
    overlays.open()
    assert list(overlays.folder.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "", "a" * 36, "/etc/passwd"])
async def test_only_an_id_names_a_disk(overlays: Overlays, name: str) -> None:
    with pytest.raises(HypervisorError):
        await overlays.ensure(name, None, None, 1)


_UNSHARE = ["unshare", "--mount", "--propagation", "private"]
_ON_A_FULL_DISK = """
import asyncio, sys, uuid
from pathlib import Path
from pupitre.errors import ImageFault
from pupitre.host.hypervisor.overlays import Overlays
overlays = Overlays(Path(sys.argv[1]))
overlays.open()
try:
    asyncio.run(overlays.ensure(str(uuid.uuid4()), None, None, 1))
except ImageFault as fault:
    print(fault, list(overlays.folder.iterdir()))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_is_said_to_be_and_nothing_is_left(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=128k full "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        [*_UNSHARE, "sh", "-c", script, "sh", tmp_path, sys.executable, _ON_A_FULL_DISK],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "is full" in done.stdout
    assert done.stdout.endswith("[]\n")
