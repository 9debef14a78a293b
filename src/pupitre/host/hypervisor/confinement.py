"""Confinement that guests need before this host takes any: the setting ``require_confinement``.

A guest that breaks out of QEMU has what QEMU has. Whatever the setting, QEMU's system calls are filtered
(seccomp), and as root it runs as a user of its own where a mount namespace is allowed.
"""

import os

from lxml import etree

from pupitre.config import Settings
from pupitre.errors import SetupError
from pupitre.host.hypervisor.isolation import Paths

MANDATORY = frozenset({"apparmor", "selinux"})
"""libvirt's names of the drivers by which the kernel keeps a guest to its own files (sVirt)."""
_MEND = "Or set require_confinement to what this machine can do, if that is enough for you."


def require_user(settings: Settings, paths: Paths) -> None:
    """Raises `SetupError` where QEMU would be root, and that is not allowed."""
    if settings.require_confinement != "none" and os.geteuid() == 0 and not paths.isolated:
        raise SetupError(
            "Guests would run as root here: no mount namespace of our own is allowed.",
            f"Run the host as an ordinary user, or allow it to mount (CAP_SYS_ADMIN). {_MEND}",
        )


def require_driver(capabilities: str) -> None:
    """Raises `SetupError` unless libvirt, which says so in its ``capabilities``, confines by the kernel's own rules."""
    models = {model.text for model in etree.fromstring(capabilities.encode()).iter("model")}
    if not models & MANDATORY:
        raise SetupError(
            "libvirt confines guests by neither AppArmor nor SELinux on this machine.",
            f"Boot a kernel with one of them (Debian: apt-get install apparmor). {_MEND}",
        )
