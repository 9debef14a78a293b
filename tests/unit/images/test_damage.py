"""A store that is damaged, read-only, full or not there: the rest goes on, and one sentence names path and remedy."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pupitre.config import Settings
from pupitre.doctor import Finding, examine
from pupitre.domain.image import CopyState
from pupitre.errors import Conflict, ImageFault, SetupError
from pupitre.images.importing.importer import import_image
from pupitre.images.store import ImageStore
from tests.rigs.image_command import create, image, reason, said
from tests.rigs.other_users import let_through

AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]
MOUNTS = ["unshare", "--mount", "--map-root-user"]


def two(home: Path) -> ImageStore:
    """A store with the images ``good`` and ``bad``."""
    store = ImageStore(home / "images")
    for name in ("good", "bad"):
        import_image(store, create(home / f"{name}.img", size="4M" if name == "good" else "8M"))
    return store


def broken(home: Path) -> list[tuple[str, bytes]]:
    """Manifests that cannot be used, each with a word of the reason."""
    good = json.loads((home / "images/manifests/bad.json").read_bytes())

    def changed(**spec: object) -> bytes:
        return json.dumps(good | {"spec": good["spec"] | spec}).encode()

    return [
        ("truncated", b"{"),
        ("truncated", b""),
        ("malformed", b"\xff\xfe{}"),
        ("cannot be used", b"[" * 20_000),
        ("larger", b" " * (2 << 20)),
        ("memory is", changed(memory_mib=99999999999)),
        ("memory", changed(memory_mib=10**30)),
        ("processors", changed(vcpus=0)),
        ("no digest", changed(disk="../../etc/passwd")),
        ("of the image 'good'", changed(id="good")),
        ("name contains", json.dumps(good | {"name": "\x1b[31m"}).encode()),
        ("10000 characters", json.dumps(good | {"description": "d" * 10_000}).encode()),
        ("date", json.dumps(good | {"created": -1}).encode()),
    ]


def test_damaged_manifest_is_named_and_others_go_on(tmp_path: Path) -> None:
    store = two(tmp_path)
    path = tmp_path / "images/manifests/bad.json"
    disk = store.spec("bad").disk
    for words, content in broken(tmp_path):
        path.write_bytes(content)
        bad, good = store.copies()
        assert (bad.image.id, bad.image.state, bad.spec) == ("bad", CopyState.FAILED, None), words
        assert good.image.state is CopyState.READY
        assert str(path) in str(bad.image.reason)
        assert words in str(bad.image.reason)
        assert "image remove bad" in str(bad.image.reason)
        with pytest.raises(ImageFault):
            store.manifest("bad")
        with pytest.raises(Conflict, match="bad"):
            import_image(store, tmp_path / "bad.img")
    code, answer = image(tmp_path, "list")
    assert (code, [item["state"] for item in answer["items"]]) == (0, ["failed", "ready"])
    code, answer = image(tmp_path, "import", create(tmp_path / "new.img"))
    assert (code, answer["state"]) == (0, "ready")
    assert disk.encode() in path.read_bytes()
    assert store.blob(disk).exists(), "what a damaged manifest names is kept"
    assert image(tmp_path, "remove", "bad")[0] == 0
    assert [copy.image.id for copy in store.copies()] == ["good", "new"]


def test_blobs_of_a_damaged_manifest_are_kept(tmp_path: Path) -> None:
    store = two(tmp_path)
    disk = store.spec("bad").disk
    path = tmp_path / "images/manifests/bad.json"
    path.write_bytes(path.read_bytes()[:-20])
    import_image(store, create(tmp_path / "new.img"))
    assert store.blob(disk).stat().st_size == 8 << 20


def test_damaged_build_state_is_passed_over(tmp_path: Path) -> None:
    store = two(tmp_path)
    (tmp_path / "images/progress/good.json").write_bytes(b"{")
    assert [copy.image.state for copy in store.copies()] == [CopyState.READY] * 2


def images_of(home: Path) -> list[Finding]:
    settings = Settings(home=home, image_store=home / "images")
    return [finding for finding in examine(settings) if finding.check.startswith("image")]


def test_doctor_names_the_damaged_and_knows_its_remedy(tmp_path: Path) -> None:
    two(tmp_path)
    (tmp_path / "images/manifests/bad.json").write_bytes(b"{")
    bad, good = images_of(tmp_path)
    assert (bad.check, bad.well, good.well) == ("image bad", False, True)
    assert "image remove bad" in bad.remedy
    assert "image build" not in bad.remedy


def test_failed_import_is_listed_without_figures(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    disk = create(tmp_path / "lab.qcow2", "qcow2")
    content = bytearray(disk.read_bytes())
    content[0x30000:0x30008] = (0x80000000DEAD0000).to_bytes(8, "big")
    disk.write_bytes(content)
    assert "damaged" in reason(image(tmp_path, "import", disk))
    (copy,) = store.copies()
    assert copy.image.state is CopyState.FAILED
    assert "MiB" not in said(tmp_path, "list", COLUMNS="200").stdout
    (finding,) = images_of(tmp_path)
    assert "image build" not in finding.remedy
    assert "image remove lab" in finding.remedy


def test_import_that_was_killed_says_import_again(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    code = (
        "import os, sys; from pathlib import Path; from pupitre.images.store import ImageStore\n"
        "with ImageStore(Path(sys.argv[1])).build('one', 'One', 'First', 'Import it again.'): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, store.root], check=False)
    assert "Import it again." in str(store.copies()[0].image.reason)


def test_store_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(b"")
    disk = create(tmp_path / "disk.img")
    for arguments in (["list"], ["import", disk], ["remove", "x"], ["build", "tiny"]):
        sentence = reason(image(tmp_path, *arguments))
        assert f"{tmp_path / 'images'} is not a folder" in sentence
        assert "PUPITRE_IMAGE_STORE" in sentence
    (finding,) = [each for each in images_of(tmp_path) if each.check == "images"]
    assert "is not a folder" in finding.found


def test_folder_of_the_store_that_is_a_file_is_named(tmp_path: Path) -> None:
    store = two(tmp_path)
    shutil.rmtree(store.root / "manifests")
    (store.root / "manifests").write_bytes(b"")
    for arguments in (["list"], ["import", tmp_path / "good.img", "--id", "x"]):
        assert f"{store.root / 'manifests'} is not a folder" in reason(image(tmp_path, *arguments))


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which only root can")
def test_store_nobody_may_use_is_one_sentence(tmp_path: Path) -> None:
    two(tmp_path)
    let_through(tmp_path)
    tmp_path.chmod(0o755)
    import_ = ["import", tmp_path / "good.img", "--id", "x"]
    for arguments in (import_, ["remove", "good"]):
        sentence = reason(image(tmp_path, *arguments, before=AS_NOBODY))
        assert "user nobody may not use" in sentence
        assert str(tmp_path / "images") in sentence
    assert image(tmp_path, "list", before=AS_NOBODY)[0] == 0, "reading needs no right to write"
    (tmp_path / "images/manifests").chmod(0o700)
    assert "may not use" in reason(image(tmp_path, "list", before=AS_NOBODY))


def mounted(home: Path, options: str, prepare: str = "true") -> list[str]:
    """Runs what follows with a small file system at the store, in a mount namespace that ends with it."""
    script = f'mount -t tmpfs -o {options} none "{home}/images" && {prepare} && exec "$@"'
    return [*MOUNTS, "sh", "-c", script, "sh"]


def test_read_only_store_is_one_sentence(tmp_path: Path) -> None:
    disk = create(tmp_path / "disk.img")
    (tmp_path / "images").mkdir()
    before = mounted(tmp_path, "ro,size=8m")
    for arguments in (["import", disk], ["remove", "x"], ["build", "tiny"]):
        sentence = reason(image(tmp_path, *arguments, before=before))
        assert f"{tmp_path / 'images'} is on a file system that is mounted read-only" in sentence
    assert image(tmp_path, "list", before=before) == (0, {"items": [], "next": None})


def test_full_disk_in_the_middle_says_so(tmp_path: Path) -> None:
    """The space was enough when the import began; what others write meanwhile is not known beforehand."""
    (tmp_path / "images").mkdir()
    script = (
        "import sys; from pathlib import Path; from pupitre.errors import SetupError\n"
        "from pupitre.images.store import ImageStore\n"
        "store = ImageStore(Path(sys.argv[1]))\n"
        "try:\n"
        "    with store.build('one', 'One', 'First') as build:\n"
        "        Path(sys.argv[1], 'other').write_bytes(b'x' * (1 << 20))\n"
        "        (build.folder / 'disk').write_bytes(b'x' * (8 << 20))\n"
        "except SetupError as error:\n"
        "    print(error)\n"
        "print(store.copies()[0].image.reason)\n"
    )
    done = subprocess.run(
        [*mounted(tmp_path, "size=2m"), sys.executable, "-c", script, tmp_path / "images"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    raised, kept = done.stdout.splitlines()
    assert raised == kept
    assert f"The disk that holds {tmp_path / 'images'} is full" in kept
    assert "PUPITRE_IMAGE_STORE" in kept


def test_full_disk_that_others_filled_is_told_all_the_same(tmp_path: Path) -> None:
    """Not one block is free when the reason is written down."""
    (tmp_path / "images").mkdir()
    script = (
        "import sys; from pathlib import Path; from pupitre.errors import SetupError\n"
        "from pupitre.images.store import ImageStore\n"
        "root = Path(sys.argv[1]); store = ImageStore(root)\n"
        "try:\n"
        "    with store.build('one', 'One', 'First') as build:\n"
        "        with open(root / 'other', 'wb', buffering=0) as other:\n"
        "            while True: other.write(b'x' * 4096)\n"
        "except SetupError: pass\n"
        "print(store.copies()[0].image.reason)\n"
    )
    done = subprocess.run(
        [*mounted(tmp_path, "size=2m"), sys.executable, "-c", script, tmp_path / "images"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "is full" in done.stdout


def test_import_larger_than_the_disk_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"x" * (8 << 20))
    sentence = reason(image(tmp_path, "import", disk, before=mounted(tmp_path, "size=4m")))
    assert "takes 8 MiB" in sentence


def test_blob_guests_may_not_read_makes_the_image_fail(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("an ordinary user's guests run as that user")
    store = two(tmp_path)
    blob = store.blob(store.spec("bad").disk)
    blob.chmod(stat.S_IRUSR)
    bad, good = store.copies()
    assert (bad.image.state, good.image.state) == (CopyState.FAILED, CopyState.READY)
    assert "chmod a+r" in str(bad.image.reason)


def test_manifest_out_of_limits_is_never_published(tmp_path: Path) -> None:
    from pupitre.errors import Invalid

    store = ImageStore(tmp_path / "images")
    for memory, vcpus in ((10**22, 1), (2048, 999), (0, 1)):
        with pytest.raises(Invalid):
            import_image(store, create(tmp_path / "disk.img"), memory_mib=memory, vcpus=vcpus)
    assert store.copies() == []


def test_reads_of_an_absent_store_are_empty(tmp_path: Path) -> None:
    assert ImageStore(tmp_path / "nowhere").copies() == []
    with pytest.raises(SetupError):
        (tmp_path / "file").write_bytes(b"")
        ImageStore(tmp_path / "file/images").copies()
