"""QEMU with its firmware alone, as a guest whose screen is all that matters."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def firmware_guest(screen: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Its VNC server listens on ``screen``. It has to live through everything that is done to it."""
    process = subprocess.Popen(
        ["qemu-system-x86_64", "-accel", "tcg", "-m", "32", "-nodefaults", "-vga", "std", "-display", "none",
         "-vnc", f"unix:{screen},share=force-shared", "-qmp", "stdio"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        process.stdin.write(b'{"execute": "qmp_capabilities"}\n')
        process.stdin.flush()
        process.stdout.readline()  # it answers once everything is set up, the VNC server too
        yield process
        assert process.poll() is None, "the guest ended"
    finally:
        process.kill()
        process.communicate()
