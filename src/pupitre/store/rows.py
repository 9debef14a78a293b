"""Hosts, copies and desktops as rows: ``status`` and ``cluster`` hold the same columns.

Mappers are written out, since `msgspec.convert` takes twice as long (3.7 µs against 1.8 for a desktop).
"""

from typing import Any, TypeVar

import msgspec

from pupitre.domain.desktop import Desktop, DesktopState
from pupitre.domain.host import Host, HostFacts, HostState
from pupitre.domain.image import CopyState, Image
from pupitre.domain.warning import HostWarning

T = TypeVar("T")
AnyRow = Any
"""A named tuple: see `pupitre.store.sql.statement`."""


def host_to_row(host: Host) -> dict[str, object]:
    return {
        "name": host.name,
        "state": host.state,
        "address": host.address,
        "port": host.port,
        "edition": host.edition,
        "since": host.since,
        "reason": host.reason,
        "facts": msgspec.json.encode(host.facts).decode() if host.facts else None,
        "label": host.label,
        "mac": host.mac,
        "viewer_port": host.viewer_port,
        "warnings": msgspec.json.encode(host.warnings).decode() if host.warnings else None,
    }


def host_from_row(row: AnyRow) -> Host:
    return Host(
        name=row.name,
        state=HostState(row.state),
        address=row.address,
        port=row.port,
        edition=row.edition,
        since=row.since,
        reason=row.reason,
        facts=_shown(row.facts, HostFacts),
        label=row.label,
        mac=row.mac,
        viewer_port=row.viewer_port,
        warnings=_shown(row.warnings, tuple[HostWarning, ...]) or (),
    )


def _shown(text: str | None, kind: type[T]) -> T | None:
    """Value that was written as JSON; None for one that an earlier version took and nobody can use."""
    try:
        return msgspec.json.decode(text, type=kind) if text else None
    except msgspec.MsgspecError:
        return None


def copy_to_row(host: str, image: Image) -> dict[str, object]:
    return {
        "host": host,
        "image": image.id,
        "name": image.name,
        "description": image.description,
        "state": image.state,
        "since": image.since,
        "memory_mib": image.memory_mib,
        "vcpus": image.vcpus,
        "progress": image.progress,
        "reason": image.reason,
    }


def image_from_row(row: AnyRow) -> Image:
    return Image(
        id=row.image,
        name=row.name,
        description=row.description,
        state=CopyState(row.state),
        since=row.since,
        memory_mib=row.memory_mib,
        vcpus=row.vcpus,
        progress=row.progress,
        reason=row.reason,
    )


def desktop_to_row(desktop: Desktop) -> dict[str, object]:
    return {
        "id": desktop.id,
        "owner": desktop.owner,
        "image": desktop.image,
        "host": desktop.host,
        "state": desktop.state,
        "since": desktop.since,
        "created": desktop.created,
        "reason": desktop.reason,
        "boot": desktop.boot,
        "until": desktop.until,
    }


def desktop_from_row(row: AnyRow) -> Desktop:
    return Desktop(
        id=row.id,
        owner=row.owner,
        image=row.image,
        host=row.host,
        state=DesktopState(row.state),
        since=row.since,
        created=row.created,
        reason=row.reason,
        boot=row.boot,
        until=row.until,
    )
