"""Machines and guests under plain QEMU, seen through their serial line, a guest's screen and its keyboard."""

import json
import select
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from PIL import Image as Picture

from pupitre.domain.image import ImageSpec
from pupitre.images.store import ImageStore

VIDEO = {"vga": ["-device", "VGA"], "virtio": ["-device", "virtio-vga"]}
SHIFTED = {"|": "backslash", "&": "7", "$": "4", "(": "9", ")": "0", "*": "8", ">": "dot"}
PLAIN = {";": "semicolon", ".": "dot", " ": "spc", "-": "minus", "/": "slash", "\n": "ret"}


class Machine:
    """``with Machine(["-m", "160", ...])``: QEMU with those arguments; its power is cut at the end."""

    def __init__(self, arguments: Sequence[str | Path]) -> None:
        # Pairs of connected sockets: no path to be too long, nothing to connect to before it is there.
        self._serial, serial = socket.socketpair()
        self._qmp, qmp = socket.socketpair()
        self._said = b""
        self.process = subprocess.Popen(
            [
                "qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35", "-cpu", "max",
                "-accel", "tcg,thread=multi", *arguments,
                "-chardev", f"socket,id=serial,fd={serial.fileno()}", "-serial", "chardev:serial",
                "-chardev", f"socket,id=qmp,fd={qmp.fileno()}", "-mon", "chardev=qmp,mode=control",
            ],
            pass_fds=(serial.fileno(), qmp.fileno()),
        )  # fmt: skip
        serial.close()
        qmp.close()
        self._qmp.settimeout(30)
        self._answers = self._qmp.makefile("rb")
        self._answers.readline()
        self.qmp("qmp_capabilities")

    def qmp(self, command: str, **arguments: Any) -> Any:
        self._qmp.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = json.loads(self._answers.readline())
            assert "error" not in answer, answer
            if "return" in answer:
                return answer["return"]

    def hears(self, words: bytes, seconds: float) -> bool:
        """Whether the serial line says ``words`` in time; what was said up to them is used up."""
        deadline = time.monotonic() + seconds
        while words not in self._said:
            ready, _, _ = select.select([self._serial], [], [], max(0.0, deadline - time.monotonic()))
            chunk = self._serial.recv(4096) if ready else b""
            if not chunk:
                return False
            self._said += chunk
        self._said = self._said.split(words, 1)[1]
        return True

    @property
    def said(self) -> str:
        """On the serial line, since the last words that were heard."""
        return self._said.decode(errors="replace")

    def lines(self, seconds: float) -> list[bytes]:
        """The whole lines that the serial line says within that time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) >= 0:
            ready, _, _ = select.select([self._serial], [], [], left)
            if not ready:
                break
            self._said += self._serial.recv(65536)
        *lines, self._said = self._said.split(b"\n")
        return [line.rstrip(b"\r") for line in lines]

    def say(self, text: str) -> None:
        """On the serial line."""
        self._serial.sendall(text.encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._answers.close()
        self._qmp.close()
        self._serial.close()


class Guest(Machine):
    """``with Guest(store, "tiny", folder)``: boots the image on an overlay; gone at the end.

    ``network``: it reaches the loopback of this machine as 10.0.2.2, as desktops do.
    """

    def __init__(self, store: ImageStore, image: str, folder: Path, *, network: bool = False) -> None:
        self.spec: ImageSpec = store.spec(image)
        self.overlay = folder / "overlay.qcow2"
        base = ["-b", str(store.blob(self.spec.disk)), "-F", str(self.spec.disk_format)]
        if not self.overlay.exists():
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *base, self.overlay], check=True)
        assert self.spec.kernel
        assert self.spec.initrd
        assert self.spec.cmdline
        super().__init__([
            "-m", str(self.spec.memory_mib), "-smp", str(self.spec.vcpus),
            "-kernel", store.blob(self.spec.kernel), "-initrd", store.blob(self.spec.initrd),
            "-append", self.spec.cmdline, *VIDEO[self.spec.video],
            "-drive", f"file={self.overlay},format=qcow2,if=virtio",
            *(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"] if network else []),
        ])  # fmt: skip

    def press(self, text: str, pause: float = 0.0) -> None:
        """On the keyboard: each key is held for ``pause`` seconds, and the next one comes as much later."""
        for letter in text:
            shift = letter in SHIFTED or letter.isupper()
            key = SHIFTED.get(letter) or PLAIN.get(letter) or letter.lower()
            names = ["shift", key] if shift else [key]
            for down in (True, False):
                keys = names if down else names[::-1]
                events = [
                    {"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": name}}} for name in keys
                ]
                self.qmp("input-send-event", events=events)
                select.select([], [], [], pause)

    def answers(self, text: str, words: bytes, seconds: float) -> bool:
        """Press ``text`` until the serial line says ``words``.

        A PS/2 keyboard holds 16 bytes, about five keys, and a guest that has to wait for its turn on a busy machine
        loses the rest: each further try is slower than the one before.
        """
        deadline = time.monotonic() + seconds
        pause = 0.0
        while time.monotonic() < deadline:
            self.press("\n" + text, pause)
            if self.hears(words, 10):
                return True
            pause = min(0.3, 2 * pause or 0.02)
        return False

    def screen(self, folder: Path) -> Picture.Image:
        path = folder / "screen.png"
        self.qmp("screendump", filename=str(path), format="png")
        with Picture.open(path) as picture:
            return picture.convert("RGB")

    def screen_until(self, folder: Path, good: Callable[[Picture.Image], bool], seconds: float) -> Picture.Image:
        """The first screen that is ``good``; looks again whenever a moment passed without a word on the serial line."""
        deadline = time.monotonic() + seconds
        while not good(picture := self.screen(folder)):
            assert time.monotonic() < deadline, f"the screen did not come in {seconds} s; it is in {folder}"
            self.hears(b"\0 no one says this \0", 1.0)
        return picture

    def power_button(self, seconds: float) -> int:
        """Pressed; the exit code once the guest has powered itself off."""
        self.qmp("system_powerdown")
        return self.process.wait(seconds)
