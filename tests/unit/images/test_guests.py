"""The images that recipes make, booted under plain QEMU: they start, take keys, keep the work, power off in order."""

import http.server
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image as Picture

from pupitre.images.recipes import desktop, recipe
from pupitre.images.store import ImageStore
from tests.rigs.qemu_guest import Guest


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


class Lesson(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"lesson-42")

    def log_message(self, *_arguments: object) -> None: ...


@pytest.fixture
def teacher() -> Iterator[int]:
    """The port of a web server on the loopback."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Lesson)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield server.server_port
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.mark.guest
@pytest.mark.timeout(300)
def test_tiny_fetches_by_address_and_by_name(images: ImageStore, tmp_path: Path, teacher: int) -> None:
    with Guest(images, "tiny", tmp_path, network=True) as guest:
        assert guest.hears(b"Pupitre tiny", 120)
        assert guest.hears(b"# ", 60)
        guest.say("until ip route | grep -q default; do sleep 1; done; cat /etc/resolv.conf\n")
        assert guest.hears(b"nameserver 10.0.2.3", 120), "the network's script was run"
        guest.say(f"wget -q -O - http://10.0.2.2:{teacher}/; echo; echo code-$((40+$?))\n")
        assert guest.hears(b"lesson-42", 60), guest.said
        assert guest.hears(b"code-40", 60)
        guest.say(
            f"echo 10.0.2.2 teacher >> /etc/hosts; wget -q -O - http://teacher:{teacher}/; echo code-$((50+$?))\n"
        )
        assert guest.hears(b"lesson-42", 60), guest.said
        assert guest.hears(b"code-50", 60)
        guest.say("wget -q -O - http://teacher.invalid/; echo code-$((60+$?))\n")
        assert guest.hears(b"code-61", 120), "refused in order, by no signal"


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


def test_what_is_mounted_below_a_system_is_not_copied(tmp_path: Path) -> None:
    """Of this machine's /dev, an image that was built as root held what other programs kept in /dev/shm."""
    script = Path(desktop.__file__).parent / "files/unmount"
    system = tmp_path / "the system"
    (system / "dev/shm").mkdir(parents=True)
    (system / "sys").mkdir()
    commands = (
        'mount -t tmpfs none "$1/dev" && mkdir "$1/dev/shm" && mount -t tmpfs none "$1/dev/shm"'
        ' && echo canary > "$1/dev/shm/other" && mount --rbind /sys "$1/sys" && sh "$2" "$1" && find "$1" | sort'
    )
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", commands, "sh", system, script],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split("\n") == [str(system), f"{system}/dev", f"{system}/dev/shm", f"{system}/sys", ""]
