"""The images that recipes make, booted under plain QEMU: they start, take keys, keep the work, power off in order."""

from pathlib import Path

import pytest
from PIL import Image as Picture

from pupitre.images.recipes import recipe
from pupitre.images.store import ImageStore
from tests.qemu_guest import Guest


@pytest.mark.guest
@pytest.mark.timeout(180)
def test_tiny_takes_keys_and_keeps_the_work(images: ImageStore, tmp_path: Path) -> None:
    with Guest(images, "tiny", tmp_path) as guest:
        assert guest.hears(b"Pupitre tiny", 60)
        assert guest.hears(b"# ", 30)
        assert guest.answers("echo answer-$((6*7)) > /dev/ttyS0\n", b"answer-42", 90)
        guest.say("echo mine > note; pwd\n")
        assert guest.hears(b"/home/student", 30)
        assert guest.power_button(60) == 0
    with Guest(images, "tiny", tmp_path) as guest:
        assert guest.hears(b"# ", 60)
        guest.say("cat note; hostname\n")
        assert guest.hears(b"mine", 30)
        assert guest.hears(b"tiny", 30)
        guest.say("exit\n")
        assert guest.hears(b"Pupitre tiny", 30), "the shell comes again"
        guest.say("poweroff\n")
        assert guest.process.wait(60) == 0


def test_a_second_build_answers_at_once(images: ImageStore) -> None:
    before = images.manifest("tiny")
    told: list[str] = []
    assert recipe("tiny").build(images, lambda step, _fraction: told.append(step)) == before
    assert told == []


def is_desktop(picture: Picture.Image) -> bool:
    """Our wallpaper, the dark taskbar at the bottom, and something drawn over the wallpaper's left edge."""
    if picture.size != (1280, 800):
        return False
    sky, bar = picture.getpixel((1000, 300)), picture.getpixel((900, 795))
    icons = picture.crop((0, 0, 120, 400)).getcolors(1 << 20)
    assert isinstance(sky, tuple)
    assert isinstance(bar, tuple)
    return sky[2] > 80 and bar == (0x16, 0x28, 0x3F) and icons is not None and len(icons) > 1000


@pytest.mark.guest
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_debian_desktop_shows_itself_and_powers_off(images: ImageStore, tmp_path: Path) -> None:
    recipe("debian-desktop").build(images)
    with Guest(images, "debian-desktop", tmp_path) as guest:
        guest.screen_until(tmp_path, is_desktop, 240)
        assert guest.power_button(90) == 0
