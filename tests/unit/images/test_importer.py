"""Import, through the command line as people use it: what stands alone comes in, what refers elsewhere does not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pupitre.images.store import ImageStore


def image(home: Path, *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    """``pupitre image … --json``: exit code and answer."""
    done = subprocess.run(
        [sys.executable, "-m", "pupitre.cli.local.image", *map(str, arguments), "--json"],
        env=os.environ | {"PUPITRE_HOME": str(home), "PUPITRE_IMAGE_STORE": str(home / "images")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


def create(path: Path, kind: str, *options: str | Path) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, *options, path, "4M"], check=True)
    return path


@pytest.mark.parametrize(("kind", "name"), [("qcow2", "Lab Disk.qcow2"), ("raw", "Lab Disk.img")])
def test_standalone_image_is_imported_listed_removed(tmp_path: Path, kind: str, name: str) -> None:
    """An image that stands alone is imported listed and removed."""
    path = create(tmp_path / name, kind)
    path.chmod(0o600)
    code, answer = image(tmp_path, "import", path, "--memory", "512", "--vcpus", "1")
    assert (code, answer.get("id"), answer.get("state")) == (0, "lab-disk", "ready"), answer
    store = ImageStore(tmp_path / "images")
    spec = store.spec("lab-disk")
    assert (spec.disk_format, spec.memory_mib, spec.vcpus) == (kind, 512, 1)
    assert store.blob(spec.disk).read_bytes() == path.read_bytes()
    code, answer = image(tmp_path, "import", path)
    assert code == 1
    assert answer["error"]["code"] == "conflict"
    code, answer = image(tmp_path, "list")
    assert [item["id"] for item in answer["items"]] == ["lab-disk"]
    assert image(tmp_path, "remove", "lab-disk") == (0, {"id": "lab-disk", "removed": True})
    assert image(tmp_path, "list")[1]["items"] == []


def test_file_referring_to_secret_is_refused(tmp_path: Path) -> None:
    """A file that refers to a secret is refused and nothing is kept."""
    secret = tmp_path / "secret"
    secret.write_text("canary-7f3a91".ljust(4096))
    path = create(tmp_path / "disk.qcow2", "qcow2", "-u", "-b", secret, "-F", "raw")
    for more in ((), ("--format", "raw"), ("--format", "iso")):
        code, answer = image(tmp_path, "import", path, *more)
        assert (code, answer["error"]["code"]) == (1, "hostile_image")
        assert "canary" not in json.dumps(answer)
    assert ImageStore(tmp_path / "images").copies() == []
    assert not list((tmp_path / "images").rglob("disk"))


def test_fault_only_qemu_img_sees_is_refused(tmp_path: Path) -> None:
    """What only qemu img can see is refused and leaves a reason."""
    path = create(tmp_path / "disk.qcow2", "qcow2")
    content = bytearray(path.read_bytes())
    content[0x30000:0x30008] = (0x80000000DEAD0000).to_bytes(8, "big")  # the L1 table points out of the file
    path.write_bytes(content)
    code, answer = image(tmp_path, "import", path)
    assert (code, answer["error"]["code"]) == (1, "hostile_image")
    assert not list((tmp_path / "images/blobs/sha256").iterdir())


def test_unknown_recipe_and_unknown_image_are_one_sentence(tmp_path: Path) -> None:
    code, answer = image(tmp_path, "build", "windows")
    assert code == 1
    assert "There are: tiny" in answer["error"]["reason"]
    code, answer = image(tmp_path, "remove", "windows")
    assert code == 1
    assert answer["error"]["code"] == "not_found"
