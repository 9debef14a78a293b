"""Memory that a guest takes from its host beyond its own: the emulator, its caches, its screen.

What a host measures of its own guests counts too where it is more (`over_books_mib`).
"""

from collections.abc import Iterable

EMULATOR_MIB = 64
"""QEMU itself, its libraries, devices and network buffers."""
TRANSLATION_MIB = 128
"""Code that emulation (TCG) keeps translated: the limit of its cache, which `host/domain_xml.py` sets."""
VIDEO_MIB = {"vga": 16, "virtio": 32}
"""Memory of the screen by video model."""
_REAL = frozenset({"tcg", "kvm"})


def guest_overhead_mib(accelerator: str, video: str) -> int:
    """MiB beyond the guest's own memory; 0 where guests are simulated.

    TCG is `EMULATOR_MIB` + `TRANSLATION_MIB` + the screen; KVM the same without translated code, for it has none.
    Measured with QEMU 7.2 under TCG on x86-64, resident memory but for the guest's own (``/proc/PID/smaps``): `tiny`
    (160 MiB, vga) 73 MiB after 20 s, 91 after 40 s, 127 after 100 s, as its translated code grows; `debian-desktop`
    (1024 MiB, virtio) 66 MiB until 100 s, 164 after 180 s, when its screen is drawn. KVM was not measured.
    """
    if accelerator not in _REAL:
        return 0
    return EMULATOR_MIB + (TRANSLATION_MIB if accelerator == "tcg" else 0) + VIDEO_MIB.get(video, 16)


def over_books_mib(guests: Iterable[tuple[int, int]], accelerator: str) -> int:
    """Memory that guests take beyond what is counted for them; each is its memory and its resident memory in MiB.

    The least overhead is taken of those that a guest may have, so that a doubt never makes room.
    """
    counted = guest_overhead_mib(accelerator, "vga")
    return sum(max(0, resident - memory - counted) for memory, resident in guests)
