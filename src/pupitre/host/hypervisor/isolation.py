"""A mount namespace of the host process's own, when it is root.

As root, libvirt runs QEMU as the user ``libvirt-qemu``, who must reach the disks wherever
PUPITRE_HOME lies, even below a folder of mode 700; and a ``/dev/kvm`` that opens but does
not run makes libvirt probe for half a minute at every start. Both are cured without
touching the machine: what QEMU needs is bind-mounted below `SHORT`, images read-only,
and a useless ``/dev/kvm`` is covered by an empty file that no one can open.

What stays true: nothing is mounted outside the namespace, and the namespace ends with
its last process. Guests keep the namespace they started in; the next host process makes
its own with the same paths, so libvirt's records and sockets still lead to the guests.
"""

import contextlib
import hashlib
import os
import pwd
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import structlog

from pupitre.config import Settings
from pupitre.errors import SetupError
from pupitre.host.hypervisor import kvm
from pupitre.images.files import make_folder
from pupitre.images.importing.faults import store_faults
from pupitre.runtime.unix_sockets import LONGEST

SHORT = Path("/run/pupitre")
"""An empty folder to everyone else. Short, because a socket's path has 107 bytes."""
QEMU_USER = "libvirt-qemu"
"""Debian's name, compiled into its libvirt, which does not start as root without it."""
_MARK = "PUPITRE_HOST_NAMESPACE_OF"
_UNSHARE = ["unshare", "--mount", "--propagation", "private", "--"]

DEEPEST = "embed/lib/qemu/domain-99999-01234567-89ab-cdef-0/monitor.sock"
"""A socket that libvirt makes below a host's folder; it knows no way around the limit of a socket's path."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Paths:
    """The folders that this process, libvirt and QEMU all reach under the same name.

    ``isolated`` says that QEMU may run as a user of its own.
    """

    embed: Path
    overlays: Path
    serials: Path
    images: Path
    isolated: bool = False


def host_paths(settings: Settings) -> Paths:
    """The folders where they lie, made if they are not there; by a short way where libvirt's sockets need one."""
    paths = _make(settings)
    fits = len(os.fsencode(settings.host_dir / DEEPEST)) <= LONGEST
    return paths if fits else _paths_under(_short_link(settings.host_dir), settings)


def _make(settings: Settings) -> Paths:
    paths = _paths_under(settings.host_dir, settings)
    for folder in (paths.embed, paths.overlays, paths.serials):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711)  # to be passed through by QEMU's user, not listed
    with store_faults(paths.images):
        make_folder(paths.images)
    return paths


def _paths_under(host: Path, settings: Settings) -> Paths:
    return Paths(host / "embed", host / "overlays", host / "serial", settings.images_dir)


def enter(settings: Settings) -> Paths:
    """Call first in `pupitre host`: starts this program anew in its namespace, with the same process id.

    Returns in the new start, or at once where no namespace is needed (an ordinary user,
    another hypervisor) or none is allowed. Raises `SetupError`.
    """
    if os.geteuid() != 0 or not settings.hypervisor.startswith("qemu:///embed"):
        return host_paths(settings)
    if os.environ.pop(_MARK, None) == str(os.getpid()):
        return _fill_namespace(settings, _make(settings))
    require_qemu_user()
    if refusal := _refusal():
        log.warning("qemu_runs_as_root", reason=refusal)
        return host_paths(settings)
    return _restart_in_namespace()


def _short_link(folder: Path) -> Path:
    """A link to ``folder``, always the same for the same user and folder. In /tmp only its owner can replace it."""
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    link = Path("/tmp") / f"pupitre-{os.geteuid()}-{digest}"
    with contextlib.suppress(FileExistsError):
        link.symlink_to(folder)
    if link.lstat().st_uid != os.geteuid() or not link.is_symlink() or link.readlink() != folder:
        raise SetupError(
            f"{link} is not our link to {folder}.", f"Remove {link}, or set PUPITRE_HOME to a shorter path."
        )
    return link


def _restart_in_namespace() -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os.environ[_MARK] = str(os.getpid())
    os.execvp(_UNSHARE[0], [*_UNSHARE, sys.executable, *sys.orig_argv[1:]])


def require_qemu_user() -> None:
    """Raises `SetupError` when libvirt, as root, would have nobody to run guests as."""
    try:
        pwd.getpwnam(QEMU_USER)
    except KeyError:
        raise SetupError(
            f"There is no user {QEMU_USER}, as whom guests run.",
            f"Make it with: adduser --system --group --no-create-home {QEMU_USER}",
        ) from None


def _refusal() -> str | None:
    """Why no namespace can be made and mounted in, if so; found by trying."""
    try:
        SHORT.mkdir(mode=0o755, parents=True, exist_ok=True)
        done = subprocess.run(
            [*_UNSHARE, "mount", "-t", "tmpfs", "pupitre", str(SHORT)], capture_output=True, text=True, check=False
        )
    except OSError as error:
        return str(error)
    return done.stderr.strip() or "unshare failed" if done.returncode else None


def _fill_namespace(settings: Settings, there: Paths) -> Paths:
    here = Paths(SHORT / "embed", SHORT / "overlays", SHORT / "serial", SHORT / "images", isolated=True)
    if not there.images.stat().st_mode & stat.S_IXOTH:
        raise SetupError(f"QEMU's user may not enter {there.images}.", f"Mend it with: chmod o+x {there.images}")
    _mount("-t", "tmpfs", "-o", "mode=755,size=1m", "pupitre", str(SHORT))
    for source, target, options in (
        (there.embed, here.embed, "bind"),
        (there.overlays, here.overlays, "bind"),
        (there.serials, here.serials, "bind"),
        (there.images, here.images, "bind,ro"),
    ):
        target.mkdir()
        _mount("-o", options, str(source), str(target))
    _fill_namespace_for_kvm(settings)
    return here


def _fill_namespace_for_kvm(settings: Settings) -> None:
    """A /dev/kvm that QEMU's user may open, if guests run on it; otherwise one that no one can."""
    if not kvm.DEVICE.exists():
        return
    verdict = kvm.probe()
    ours = SHORT / "kvm"
    if settings.accelerator == "tcg" or not verdict.usable:
        log.info("kvm_unusable", reason=verdict.sentence)
        ours.touch(mode=0)
    elif stat.S_IMODE(kvm.DEVICE.stat().st_mode) & 0o060 != 0o060:
        device = kvm.DEVICE.stat()
        os.mknod(ours, stat.S_IFCHR, device.st_rdev)
        os.chown(ours, 0, pwd.getpwnam(QEMU_USER).pw_gid)
        ours.chmod(0o660)
    else:
        return
    _mount("-o", "bind", str(ours), str(kvm.DEVICE))


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f"mount {' '.join(arguments)} failed: {done.stderr.strip()}.", "")
