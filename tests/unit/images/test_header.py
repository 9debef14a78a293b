"""The header reader: harmless images pass, hostile ones are refused before any other program sees them."""

import io
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pupitre.domain.image import DiskFormat
from pupitre.errors import HostileImage, Invalid
from pupitre.images.importing.confine import check_image, image_info
from pupitre.images.importing.header import MAGICS, TIB, agreed_format, open_regular, read_header

SECRET = "canary-7f3a91"


def qemu_img(*arguments: str | Path) -> None:
    """For LUKS it times the processor, and now and then finds that no time has passed: then once more."""
    for _ in range(20):
        done = subprocess.run(["qemu-img", *map(str, arguments)], check=False, capture_output=True, text=True)
        if "Unable to get accurate CPU usage" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr


def qcow2(folder: Path, *options: str, size: str = "16M", name: str = "disk.qcow2") -> Path:
    path = folder / name
    qemu_img("create", "-f", "qcow2", *options, path, size)
    path.chmod(0o444)
    return path


def verdict(path: Path, disk_format: DiskFormat) -> str:
    """Why the file is refused."""
    with open_regular(path) as file, pytest.raises(HostileImage) as caught:
        read_header(file, disk_format)
    return str(caught.value)


def patched(path: Path, offset: int, data: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    target = path.with_name("patched.qcow2")
    target.write_bytes(content)
    return target


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(SECRET.ljust(512, "\n"))
    return path


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-o", "compat=0.10"),
        ("-o", "compression_type=zstd"),
        ("-o", "extended_l2=on,cluster_size=128k"),
        ("-o", "cluster_size=2M"),
        ("-o", "lazy_refcounts=on"),
    ],
)
def test_harmless_qcow2_passes_and_qemu_agrees(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = qcow2(tmp_path, *options, size="3G")
    with open_regular(path) as file:
        header = read_header(file, DiskFormat(agreed_format(path, file)))
    assert header.virtual_bytes == 3 << 30
    assert image_info(path, DiskFormat.QCOW2)["virtual-size"] == header.virtual_bytes
    check_image(path, DiskFormat.QCOW2)


def test_snapshots_and_bitmaps_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", path, "16M")
    qemu_img("snapshot", "-c", "one", path)
    qemu_img("bitmap", "--add", path, "changes")
    with open_regular(path) as file:
        assert read_header(file, DiskFormat.QCOW2).virtual_bytes == 16 << 20


@pytest.mark.parametrize("backing_format", ["raw", "qcow2"])
def test_backing_file_is_refused(tmp_path: Path, secret: Path, backing_format: str) -> None:
    path = qcow2(tmp_path, "-u", "-b", str(secret), "-F", backing_format)
    assert "backing file" in verdict(path, DiskFormat.QCOW2)


def test_json_backing_name_is_refused(tmp_path: Path, secret: Path) -> None:
    name = f'json:{{"driver":"raw","file":{{"driver":"file","filename":"{secret}"}}}}'
    assert "backing file" in verdict(qcow2(tmp_path, "-u", "-b", name, "-F", "raw"), DiskFormat.QCOW2)


def test_backing_format_alone_is_refused(tmp_path: Path) -> None:
    path = qcow2(tmp_path, "-u", "-b", "x", "-F", "raw")
    assert "backing file's format" in verdict(patched(path, 8, bytes(12)), DiskFormat.QCOW2)


def test_external_data_file_is_refused(tmp_path: Path, secret: Path) -> None:
    path = qcow2(tmp_path, "-o", f"data_file={tmp_path / 'data'},data_file_raw=on")
    assert "external file" in verdict(path, DiskFormat.QCOW2)
    # The name alone, without the feature bit, is no better.
    features = struct.unpack(">Q", path.read_bytes()[72:80])[0]
    assert "external data file" in verdict(patched(path, 72, struct.pack(">Q", features & ~4)), DiskFormat.QCOW2)


@pytest.mark.parametrize("kind", ["aes", "luks"])
def test_encryption_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "disk.qcow2"
    if kind == "luks":
        options = [
            "--object",
            "secret,id=s,data=abc",
            "-o",
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
        ]
        qemu_img("create", "-f", "qcow2", *options, path, "16M")
    else:
        path = patched(qcow2(tmp_path), 32, struct.pack(">I", 1))
    assert "encrypted" in verdict(path, DiskFormat.QCOW2)


@pytest.mark.parametrize(
    ("offset", "data", "words"),
    [
        (4, struct.pack(">I", 1), "version 1"),
        (4, struct.pack(">I", 4), "version 4"),
        (20, struct.pack(">I", 8), "cluster size"),
        (20, struct.pack(">I", 60), "cluster size"),
        (24, struct.pack(">Q", 1 << 60), "L1 table is too small"),
        (24, struct.pack(">Q", 0), "claims 0.0 TiB"),
        (36, struct.pack(">I", 0xFFFFFFFF), "L1 table claims"),
        (40, struct.pack(">Q", 1 << 50), "outside the file"),
        (40, struct.pack(">Q", 0), "outside the file"),
        (48, struct.pack(">Q", 12345), "outside the file"),
        (56, struct.pack(">I", 0xFFFFFFFF), "refcount table claims"),
        (60, struct.pack(">I", 0xFFFFFFFF), "internal snapshots"),
        (72, struct.pack(">Q", 1), "closed in order"),
        (72, struct.pack(">Q", 2), "damaged"),
        (72, struct.pack(">Q", 1 << 5), "not known here"),
        (72, struct.pack(">Q", 1 << 63), "not known here"),
        (96, struct.pack(">I", 60), "reference counts"),
        (100, struct.pack(">I", 8), "impossible length"),
        (100, struct.pack(">I", 0xFFFFFFF8), "impossible length"),
    ],
)
def test_each_field_out_of_range_is_refused(tmp_path: Path, offset: int, data: bytes, words: str) -> None:
    assert words in verdict(patched(qcow2(tmp_path), offset, data), DiskFormat.QCOW2)


def test_extension_that_runs_out_of_the_header_is_refused(tmp_path: Path) -> None:
    path = qcow2(tmp_path)
    start = struct.unpack(">I", path.read_bytes()[100:104])[0]
    assert "runs out" in verdict(patched(path, start, struct.pack(">II", 0x1234, 0xFFFFFFF0)), DiskFormat.QCOW2)


def test_absurd_size_is_refused_and_the_limit_can_be_set(tmp_path: Path) -> None:
    path = qcow2(tmp_path, "-o", "cluster_size=2M", size="3T")
    assert "3.0 TiB" in verdict(path, DiskFormat.QCOW2)
    with open_regular(path) as file:
        assert read_header(file, DiskFormat.QCOW2, max_virtual_bytes=4 * TIB).virtual_bytes == 3 * TIB


@pytest.mark.parametrize("kind", ["qcow2", "qcow", "vmdk", "vdi", "vpc", "vhdx", "qed", "parallels", "luks"])
def test_every_other_format_that_claims_to_be_raw_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "disk.raw"
    options = ["--object", "secret,id=s,data=abc", "-o", "key-secret=s,iter-time=10"] if kind == "luks" else []
    qemu_img("create", "-f", kind, *options, path, "16M")
    assert "claimed to be a raw disk" in verdict(path, DiskFormat.RAW)
    if kind != "qcow2":
        assert "does not begin like one" in verdict(path, DiskFormat.QCOW2) or kind == "qcow"


def test_fixed_vhd_is_seen_by_its_footer(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    qemu_img("create", "-f", "vpc", "-o", "subformat=fixed", path, "16M")
    assert "VHD" in verdict(path, DiskFormat.RAW)


def test_vmdk_descriptor_that_names_a_secret_is_refused(tmp_path: Path, secret: Path) -> None:
    path = tmp_path / "disk.raw"
    text = f'# comment\n\nversion=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 1 FLAT "{secret}" 0\n'
    path.write_bytes(text.encode().ljust(1024, b"\n"))
    assert "VMDK" in verdict(path, DiskFormat.RAW)


def test_raw_that_is_empty_or_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"")
    assert "empty" in verdict(path, DiskFormat.RAW)
    path.write_bytes(bytes(1000))
    assert "cut off" in verdict(path, DiskFormat.RAW)


def iso_bytes() -> bytearray:
    content = bytearray(20 * 2048)
    content[16 * 2048 : 16 * 2048 + 6] = b"\x01CD001"
    return content


def test_iso_needs_its_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "disc.iso"
    path.write_bytes(iso_bytes())
    with open_regular(path) as file:
        assert read_header(file, DiskFormat(agreed_format(path, file))).virtual_bytes == 20 * 2048
    path.write_bytes(bytes(20 * 2048))
    assert "CD001" in verdict(path, DiskFormat.ISO)


def test_iso_that_begins_like_qcow2_is_refused(tmp_path: Path) -> None:
    content = iso_bytes()
    content[:8] = b"QFI\xfb\0\0\0\3"
    path = tmp_path / "disc.iso"
    path.write_bytes(content)
    assert "QCOW" in verdict(path, DiskFormat.ISO)
    with open_regular(path) as file, pytest.raises(Invalid, match="begins like qcow2"):
        agreed_format(path, file)


def test_name_and_content_must_agree(tmp_path: Path) -> None:
    for name, words in [("disk.img", "begins like qcow2"), ("disk.iso", "begins like qcow2"), ("disk", "does not say")]:
        with open_regular(qcow2(tmp_path, name=name)) as file, pytest.raises(Invalid, match=words):
            agreed_format(tmp_path / name, file)


def test_only_files_are_opened(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.raw")
    for path in (tmp_path, tmp_path / "pipe.raw", Path("/dev/zero")):
        with pytest.raises(Invalid, match="is not a file"):
            open_regular(path)
    with pytest.raises(Invalid, match="cannot be opened"):
        open_regular(tmp_path / "absent.raw")


@given(st.sampled_from(MAGICS), st.binary(max_size=4096))
def test_no_magic_hides_in_a_raw_file(magic: tuple[int, bytes, str], noise: bytes) -> None:
    content = bytearray(noise.ljust(8192, b"\0"))
    content[magic[0] : magic[0] + len(magic[1])] = magic[1]
    with pytest.raises(HostileImage):
        read_header(io.BytesIO(bytes(content)), DiskFormat.RAW)


@given(st.binary(max_size=2048), st.sampled_from(DiskFormat))
def test_any_bytes_are_judged_and_never_crash(content: bytes, disk_format: DiskFormat) -> None:
    try:
        header = read_header(io.BytesIO(content), disk_format)
    except HostileImage:
        return
    assert header.disk_format is disk_format
    assert 0 < header.virtual_bytes <= 2 * TIB


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_changed_header_that_passes_refers_to_no_other_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any few bytes of a good header changed: refused, or still an image that QEMU opens without another file."""
    folder = tmp_path_factory.getbasetemp() / "header"
    folder.mkdir(exist_ok=True)
    good = folder / "good.qcow2"
    if not good.exists():
        qcow2(folder, name="good.qcow2")
    content = bytearray(good.read_bytes())
    for at in data.draw(st.lists(st.integers(0, 200), min_size=1, max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    try:
        read_header(io.BytesIO(bytes(content)), DiskFormat.QCOW2)
    except HostileImage:
        return
    path = folder / "changed.qcow2"
    path.write_bytes(content)
    path.chmod(0o644)
    try:
        info = image_info(path, DiskFormat.QCOW2)
    except HostileImage:
        return
    assert not {"backing-filename", "full-backing-filename"} & info.keys()
    assert "data-file" not in info.get("format-specific", {}).get("data", {})
