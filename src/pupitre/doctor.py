"""Checks this machine and says what mends what. Nothing is changed.

Each check is one function that returns findings; a finding is ``well`` or not, and one
that is not well but does not keep Pupitre from running is ``minor``.
"""

import datetime
import os
import pwd
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil
from sqlalchemy import select

from pupitre.config import Settings
from pupitre.errors import PupitreError, SetupError, Unavailable
from pupitre.host.hypervisor import guest_process, isolation, kvm
from pupitre.images.programs import DEBIAN_PACKAGE, find
from pupitre.images.recipes import RECIPES
from pupitre.images.store import ImageStore
from pupitre.net.exposure import mismatches
from pupitre.pki import authority, issuing
from pupitre.pki.authority import Rotation
from pupitre.store.admin import migrate
from pupitre.store.rows import host_from_row
from pupitre.store.schema import DATABASES, hosts
from pupitre.up.prepare import ROLES
from pupitre.up.processes.children import program
from pupitre.up.processes.ports import is_free

PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "apt-get": "apt",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "prlimit": "util-linux",
} | ({} if os.geteuid() == 0 else {"newuidmap": "uidmap"})
DRIVER = "libvirt/connection-driver/libvirt_driver_qemu.so"
LEAST_DISK_GIB = 6
LEAST_MEMORY_MIB = 2048
GIB = 2**30
_HOSTS = select(hosts).order_by(hosts.c.name)
RENEW_SOON = datetime.timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Finding:
    """``remedy`` is a command or a setting; empty where there is nothing to mend."""

    check: str
    well: bool
    found: str
    remedy: str = ""
    minor: bool = False


def examine(settings: Settings) -> list[Finding]:
    """Every check in the order in which a start needs it."""
    return [finding for check in CHECKS for finding in check(settings)]


def _python(_settings: Settings) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", sys.version_info >= (3, 11), f"Python {version}", "Use Python 3.11 or later.")


def _programs(_settings: Settings) -> Iterator[Finding]:
    missing = [name for name in PROGRAMS if find(name) is None]
    packages = sorted({PROGRAMS.get(name, DEBIAN_PACKAGE.get(name, name)) for name in missing})
    if missing:
        remedy = f"sudo apt-get install --no-install-recommends {' '.join(packages)}"
        yield Finding("programs", False, f"Missing: {', '.join(missing)}", remedy)
    else:
        yield Finding("programs", True, f"{len(PROGRAMS)} programs are there, from QEMU to mmdebstrap")
    try:
        yield Finding("nats-server", True, str(program("nats-server")))
    except SetupError as error:
        yield Finding("nats-server", False, "The message broker is missing", error.remedy)


def _libvirt(_settings: Settings) -> Iterator[Finding]:
    if find_spec("libvirt") is None:
        yield Finding("libvirt", False, "The Python module libvirt is missing", "scripts/setup run")
        return
    libraries = [*Path("/usr/lib").glob("*-linux-gnu"), Path("/usr/lib64"), Path("/usr/lib")]
    here = any((folder / DRIVER).exists() for folder in libraries)
    yield Finding(
        "libvirt", here, "libvirt's QEMU driver is there" if here else "libvirt's QEMU driver is missing",
        "" if here else "sudo apt-get install --no-install-recommends libvirt-daemon-driver-qemu",
    )  # fmt: skip
    if os.geteuid() == 0:
        try:
            isolation.require_qemu_user()
        except SetupError as error:
            yield Finding("guests' user", False, error.reason, error.remedy)
        else:
            yield Finding("guests' user", True, f"Guests run as {isolation.QEMU_USER}")


def _kvm(settings: Settings) -> Iterator[Finding]:
    verdict = kvm.probe()
    if settings.accelerator == "kvm" and not verdict.usable:
        yield Finding("kvm", False, verdict.sentence, 'Set accelerator = "auto" (PUPITRE_ACCELERATOR=auto).')
    else:
        yield Finding("kvm", verdict.usable, verdict.sentence, minor=True)


def _guests(_settings: Settings) -> Iterator[Finding]:
    if guest_process.has_cgroups():
        yield Finding("guests' limits", True, "CPU shares and a memory limit by cgroups, and niceness")
    else:
        yield Finding(
            "guests' limits", True, "niceness and a ceiling of memory for each guest; no cgroups that libvirt can use"
        )


def _memory(_settings: Settings) -> Iterator[Finding]:
    free = psutil.virtual_memory().available >> 20
    remedy = "Close programs, or choose smaller images: a desktop needs 256 MiB to 2 GiB."
    yield Finding("memory", free >= LEAST_MEMORY_MIB, f"{free} MiB free", remedy, minor=True)


def _disk(settings: Settings) -> Iterator[Finding]:
    for check, folder in (("disk for images", settings.images_dir), ("disk for desktops", settings.home)):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free / GIB
        remedy = f"Free some space on {there}, or set {'image_store' if 'images' in check else 'home'} to another disk."
        yield Finding(check, free >= LEAST_DISK_GIB, f"{free:.1f} GiB free in {folder}", remedy, minor=free >= 1)


def _home(settings: Settings) -> Iterator[Finding]:
    if not settings.home.exists():
        yield Finding("home", True, f"{settings.home} will be made by the first start")
        return
    mode = settings.home.stat().st_mode & 0o777
    owner = pwd.getpwuid(settings.home.stat().st_uid).pw_name
    own = settings.home.stat().st_uid == os.geteuid()
    yield Finding("home", own, f"{settings.home} belongs to {owner}", f"sudo chown -R $USER {settings.home}")
    secret = not mode & 0o077
    yield Finding("home's mode", secret, f"{settings.home} has mode {mode:o}", f"chmod 700 {settings.home}")


def _port(settings: Settings) -> Iterator[Finding]:
    where = f"{settings.portal_host}:{settings.portal_port}"
    lock = settings.run_dir / "processes.json"
    if is_free(settings.portal_host, settings.portal_port):
        yield Finding("port", True, f"{where} is free")
    elif lock.exists():
        yield Finding("port", True, f"{where} is in use, and Pupitre runs")
    else:
        yield Finding("port", False, f"{where} is in use by something else", "PUPITRE_PORTAL_PORT=… pupitre up")


def _exposure(settings: Settings) -> Iterator[Finding]:
    wrong = mismatches(settings)
    for sentence, remedy in wrong:
        yield Finding("address", False, sentence, remedy, minor=True)
    if not wrong:
        yield Finding("address", True, f"Browsers open {settings.origin}")


def _authority(settings: Settings, now: datetime.datetime) -> Iterator[Finding]:
    here = issuing.roles_here(settings)
    if not here and not authority.is_here(settings):
        return
    try:
        signer, _ = authority.signer(settings)
    except SetupError as error:
        yield Finding("authority", False, error.reason, error.remedy, minor=True)
        return
    left, stands = signer.not_valid_after_utc - now, authority.rotation(settings)
    if stands is not Rotation.NONE:
        next_step = "switch" if stands is Rotation.BEGUN else "finish"
        remedy = f"pupitre pki rotate {next_step}"
        yield Finding("authority", False, f"its rotation has {stands}, and is not finished", remedy, minor=True)
    else:
        yield Finding(
            "authority", left.days > 365, f"good for {left.days} days", "pupitre pki rotate begin", minor=True
        )


def _certificates(settings: Settings) -> Iterator[Finding]:
    now = datetime.datetime.now(datetime.UTC)
    yield from _authority(settings, now)
    if settings.tls_cert and settings.tls_key:
        try:
            issuing.check_public(settings.tls_cert, settings.tls_key)
            left = issuing.load_certificate(settings.tls_cert).not_valid_after_utc - now
        except SetupError as error:
            yield Finding("web certificate", False, error.reason, error.remedy)
        else:
            remedy = "Renew it where it was issued"
            yield Finding("web certificate", left.days > 7, f"good for {left.days} days", remedy, minor=True)
    for role in (*ROLES, issuing.host_role(settings.host_name)):
        path = issuing.directory(settings, role) / f"{role}.crt"
        if not path.exists():
            continue
        try:
            certificate = issuing.load_certificate(path)
            left = certificate.not_valid_after_utc - now
            life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        except PupitreError as error:
            yield Finding(f"certificate of {role}", False, str(error), f"pupitre pki issue {role}")
            continue
        yield Finding(
            f"certificate of {role}", left > min(RENEW_SOON, life / 4), f"good for {left.days} days",
            f"pupitre pki issue {role}", minor=left > datetime.timedelta(),
        )  # fmt: skip


def _databases(settings: Settings) -> Iterator[Finding]:
    try:
        on_server = settings.database_urls() is not None
        urls = {name: settings.database_url(name) for name in DATABASES}
    except SetupError as error:
        yield Finding("databases", False, str(error), error.remedy)
        return
    if not on_server and not (settings.home / "db").is_dir():
        yield Finding("databases", True, "will be made by the first start")
        return
    for name, url in urls.items():
        try:
            current, newest = migrate.current(url), migrate.head(name)
        except Unavailable as error:
            yield Finding(f"database {name}", False, str(error), "Start the database server")
            continue
        if current is None:
            yield Finding(f"database {name}", False, "is not there", "pupitre db create")
            continue
        well = current == newest
        found = f"at revision {current}" if well else f"at revision {current}, the newest is {newest}"
        yield Finding(f"database {name}", well, found, "" if well else "pupitre db upgrade")


def _hosts(settings: Settings) -> Iterator[Finding]:
    """State of the hosts that the website was told last, where its database is at hand."""
    try:
        if settings.database_urls() is None and not (settings.home / "db").is_dir():
            return
        rows = migrate.inspect(settings.database_url("status"), lambda connection: list(connection.execute(_HOSTS)))
    except (SetupError, Unavailable):
        return  # said above
    for host in map(host_from_row, rows):
        for warning in host.warnings:
            yield Finding(f"host {host.title}", False, warning.sentence(host.title), minor=True)


def _images(settings: Settings) -> Iterator[Finding]:
    store = ImageStore(settings.images_dir)
    try:
        copies = store.copies()
    except SetupError as error:
        yield Finding("images", False, error.reason, error.remedy)
        return
    for copy in copies:
        image = copy.image
        if copy.spec is None and image.progress is None:
            again = f"pupitre image build {image.id}" if image.id in RECIPES else "import it again"
            remedy = f"{again}, or take it away: pupitre image remove {image.id}"
            yield Finding(f"image {image.id}", False, image.reason or image.state, remedy, minor=True)
        else:
            yield Finding(f"image {image.id}", True, image.reason or image.name)
    if not copies:
        yield Finding(
            "images", False, f"There are none in {settings.images_dir}", "pupitre image build tiny", minor=True
        )


def _network(settings: Settings) -> Iterator[Finding]:
    if settings.guest_network == "none":
        yield Finding("guest network", True, "Guests have no network")
        return
    reachable = {"127.0.0.1", "0.0.0.0", "::1", "::"}  # noqa: S104
    sockets = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    listening = sorted({each.laddr.port for each in sockets if each.laddr and each.laddr.ip in reachable})
    ports = ", ".join(map(str, listening[:20])) + (" …" if len(listening) > 20 else "")
    yield Finding(
        "guest network", False, f"Every guest reaches this machine's loopback at 10.0.2.2; now listening: {ports}",
        "Set guest_network = \"none\", or a libvirt network with a filter.", minor=True,
    )  # fmt: skip


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    _python, _programs, _libvirt, _kvm, _guests, _memory, _disk, _home, _port, _exposure, _certificates, _databases,
    _hosts, _images, _network,
)  # fmt: skip
