"""Names, ids and numbers of images: whatever people write is taken as it is, or refused in one sentence."""

import os
import string
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pupitre.domain.image import IMAGE_ID, DiskFormat, ImageSpec, id_from_name, name_fault, spec_fault
from pupitre.domain.text import is_shown, shown
from pupitre.images.importing.importer import image_id
from pupitre.images.store import ImageStore
from tests.rigs.image_command import create, image, reason, said

SPEC = ImageSpec(id="one", disk="disk", disk_format=DiskFormat.RAW, memory_mib=64, vcpus=1)


def test_file_name_that_is_not_utf8_is_imported(tmp_path: Path) -> None:
    raw_path = os.fsencode(tmp_path) + b"/caf\xe9 1\xff.img"
    create(tmp_path / "plain.img").rename(Path(os.fsdecode(raw_path)))
    code, answer = image(tmp_path, "import", raw_path)
    assert code == 0, answer
    assert answer["name"] == "caf\ufffd 1\ufffd"
    assert answer["description"] == "Imported from caf\ufffd 1\ufffd.img"
    done = said(tmp_path, "list")
    assert (done.returncode, done.stderr) == (0, "")
    assert answer["id"] in done.stdout


def test_absent_file_with_unshowable_name_is_one_sentence(tmp_path: Path) -> None:
    done = said(tmp_path, "import", b"\xff\x1b[31m\n.img")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cannot be opened" in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("数学", "image-"),
        ("Класс 1", "image-"),
        ("Класс 1b", "1b-"),
        ("Informática", "informatica"),
        ("Straße 7", "strasse-7"),
        ("Lab Disk", "lab-disk"),
        ("🎓", "image-"),
    ],
)
def test_any_name_gets_an_id_and_stays(tmp_path: Path, name: str, expected: str) -> None:
    code, answer = image(tmp_path, "import", create(tmp_path / "disk.img"), "--name", name)
    assert code == 0, answer
    assert answer["name"] == name
    assert answer["id"].startswith(expected)
    assert IMAGE_ID.fullmatch(answer["id"])
    assert ImageStore(tmp_path / "images").manifest(answer["id"]).name == name


def test_id_given_is_taken_and_checked(tmp_path: Path) -> None:
    disk = create(tmp_path / "disk.img")
    code, answer = image(tmp_path, "import", disk, "--name", "数学", "--id", "mathematics")
    assert (code, answer["id"], answer["name"]) == (0, "mathematics", "数学")
    assert "1 to 48 small letters" in reason(image(tmp_path, "import", disk, "--id", "../x"))
    assert "--id" in reason(image(tmp_path, "import", disk, "--id", "mathematics"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("\x1b[31mred", "U+001B"),
        ("two\nlines", "U+000A"),
        ("abc\u202egnp.exe", "U+202E"),
        ("zero\u200bwidth", "U+200B"),
        ("x" * 10_000, "10000 characters"),
        ("   ", "is empty"),
        ("", "is empty"),
    ],
)
def test_name_nobody_can_read_is_refused(tmp_path: Path, name: str, words: str) -> None:
    assert words in reason(image(tmp_path, "import", create(tmp_path / "disk.img"), "--name", name))
    assert ImageStore(tmp_path / "images").copies() == []


def test_name_not_utf8_is_refused(tmp_path: Path) -> None:
    assert "U+DCFF" in reason(image(tmp_path, "import", create(tmp_path / "disk.img"), "--name", b"a\xff"))


def test_file_name_with_escapes_is_shown_without_them(tmp_path: Path) -> None:
    path = create(tmp_path / "disk.img").rename(tmp_path / "a\x1b[31m\nb\u202e.img")
    done = said(tmp_path, "import", path, "--json")
    assert done.returncode == 0, done.stderr
    done = said(tmp_path, "list")
    assert not set("\x1b\u202e") & set(done.stdout + done.stderr)


def test_name_in_brackets_is_printed_as_it_is(tmp_path: Path) -> None:
    assert image(tmp_path, "import", create(tmp_path / "disk.img"), "--name", "[red]x[/] :smile:")[0] == 0
    assert "[red]x[/]" in said(tmp_path, "list", COLUMNS="200").stdout


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--memory", "9999999999999999999999"),
        ("--memory", "99999999999"),
        ("--memory", "63"),
        ("--memory", str((1 << 20) + 1)),
        ("--vcpus", "65"),
        ("--vcpus", "0"),
        ("--vcpus", "9999999999999999999999"),
    ],
)
def test_number_no_host_has_is_refused(tmp_path: Path, option: str, value: str) -> None:
    done = said(tmp_path, "import", create(tmp_path / "disk.img"), option, value)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "equal to" in done.stderr
    assert ImageStore(tmp_path / "images").copies() == []


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("memory_mib", 10**22, "memory is 64 to 1048576 MiB"),
        ("memory_mib", -1, "memory is 64"),
        ("vcpus", 65, "processors is 1 to 64"),
        ("disk_gib", 2049, "disk is 1 to 2048 GiB"),
        ("video", "gl", "video is vga or virtio"),
        ("cmdline", "quiet\ninit=/bin/sh", "command line contains"),
        ("id", "A", "small letters"),
    ],
)
def test_spec_out_of_limits_has_a_reason(field: str, value: object, words: str) -> None:
    from dataclasses import replace

    assert spec_fault(SPEC) is None
    assert words in str(spec_fault(replace(SPEC, **{field: value})))  # type: ignore[arg-type]


@given(st.text())
def test_shown_text_has_nothing_unseen(text: str) -> None:
    line = shown(text, 40)
    assert len(line) <= 40
    assert all(is_shown(character) for character in line)
    assert shown(line, 40) == line


@given(st.text(min_size=1, max_size=255))
def test_every_name_has_a_valid_id(name: str) -> None:
    assert IMAGE_ID.fullmatch(image_id(name.encode(errors="replace").decode()))


@given(st.text(st.characters(categories=["Lo"]), min_size=1, max_size=20), st.text(string.ascii_letters, max_size=9))
def test_names_of_other_scripts_stay_apart(name: str, tail: str) -> None:
    other = name + "한"
    assert unicodedata.normalize("NFKD", name) == unicodedata.normalize("NFKD", other) or image_id(
        name + tail
    ) != image_id(other + tail)


@given(st.text(max_size=300), st.text(max_size=1100))
def test_name_without_fault_is_printable(name: str, description: str) -> None:
    if name_fault(name, description) is None:
        assert all(is_shown(character) for character in name + description)
        assert name.strip()
        assert len(name) <= 255


def test_ids_of_ascii_names_are_as_before() -> None:
    for name, expected in (("Lab Disk", "lab-disk"), ("tiny", "tiny"), ("A" * 60, "a" * 48), ("x-_-y", "x-y")):
        assert id_from_name(name, "0" * 64) == expected
