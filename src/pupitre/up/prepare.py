"""Makes what a first start lacks: folders, databases, certificates, accounts, the image ``tiny``.

Run by `up` as a process of its own (``python -m pupitre.up.prepare``), because it needs
modules that the supervisor must not carry for the rest of its life. All of it may be
repeated: what is there stays as it is.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pupitre import config
from pupitre.config import Settings
from pupitre.errors import ImageFault, NotFound, PupitreError, SetupError
from pupitre.images.signatures import ensure_signed
from pupitre.images.store import ImageStore
from pupitre.pki import authority, issuing
from pupitre.store.admin import migrate
from pupitre.up.demo import ensure_accounts
from pupitre.up.hosts import local_hosts
from pupitre.up.processes.children import PUPITRE
from pupitre.up.renewal import note_renewal

ROLES = ("nats", "endpoint", "cluster", "gateway", "portal")
FIRST_IMAGE = "tiny"


def prepare(settings: Settings) -> None:
    """Raises `PupitreError`."""
    with _step("databases"):
        ensure_databases(settings)
    with _step("certificates"):
        ensure_certificates(settings)
    with _step("accounts"):
        asyncio.run(ensure_accounts(settings))
    ensure_signed(settings.images_dir)
    if settings.demo_images and not _has_image(settings, FIRST_IMAGE):
        _build(FIRST_IMAGE)


def ensure_databases(settings: Settings) -> list[str]:
    """Creates and upgrades all four; the names of those that changed."""
    return migrate.upgrade_all(settings)


def ensure_certificates(settings: Settings) -> None:
    """Raises `SetupError` where one is due that cannot be issued, as the authority is missing."""
    hosts = {
        issuing.host_role(host.name): settings.model_copy(update={"host_name": host.name})
        for host in local_hosts(settings)
    }
    roles = {**dict.fromkeys(ROLES, settings), **hosts}
    if authority.is_here(settings) or not issuing.roles_here(settings):
        issuing.ensure_authority(settings)
        issuing.ensure_ticket_key(settings)
        for role, own in roles.items():
            issuing.ensure_certificate(own, role)
    else:
        for role, own in roles.items():
            issuing.renew_if_due(own, role)
        where = authority.folder(settings)
        print(f"  the authority's key is not in {where}: no certificate is renewed until it is back", flush=True)
    note_renewal(settings)


def _has_image(settings: Settings, image: str) -> bool:
    try:
        ImageStore(settings.images_dir).manifest(image)
    except (NotFound, ImageFault):
        return False
    return True


def _build(image: str) -> None:
    print(f"  building the image {image}; this happens once for this user", flush=True)
    ended = subprocess.run([*PUPITRE, "image", "build", image], check=False, env=os.environ)
    if ended.returncode:
        raise SetupError(f"The image {image} could not be built.", f"Try it alone: pupitre image build {image}")


@contextmanager
def _step(name: str, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    begun = clock()
    yield
    print(f"  {name:<14} {clock() - begun:5.1f} s", flush=True)


if __name__ == "__main__":
    try:
        prepare(config.load())
    except PupitreError as error:
        print(f"pupitre up: {error}", file=sys.stderr)
        sys.exit(2)
