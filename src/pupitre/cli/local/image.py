"""``pupitre image``: build, import, list and remove images in this machine's image store."""

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from pupitre import config
from pupitre.domain.image import LEAST_MEMORY_MIB, MOST_MEMORY_MIB, MOST_VCPUS, DiskBus, DiskFormat, Firmware, ImageCopy
from pupitre.domain.text import shown
from pupitre.errors import PupitreError
from pupitre.images.importing.header import AnyFormat, Foreign
from pupitre.images.importing.importer import DEFAULT_MEMORY_MIB, DEFAULT_VCPUS, import_image
from pupitre.images.progress import Progress
from pupitre.images.recipes import RECIPES
from pupitre.images.recipes import recipe as find_recipe
from pupitre.images.signatures import ensure_signed, publisher
from pupitre.images.store import ImageStore

app = typer.Typer(
    add_completion=False, help="Images: the computers that desktops are started from.", no_args_is_help=True
)


class Format(StrEnum):
    """Format that may be imported."""

    QCOW2 = DiskFormat.QCOW2
    RAW = DiskFormat.RAW
    ISO = DiskFormat.ISO
    VMDK = Foreign.VMDK
    VDI = Foreign.VDI
    VHDX = Foreign.VHDX
    OVA = Foreign.OVA


Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help=f"One of: {', '.join(RECIPES)}.")]


def open_store() -> ImageStore:
    """The store that the settings name; other processes hear of every change."""
    return ImageStore(config.load().images_dir)


@app.command()
def build(name: NameArgument, as_json: Json = False) -> None:
    """Build an image from Debian packages. What is already built is not built again."""
    with _outcome(as_json):
        store, recipe, begun = open_store(), find_recipe(name), time.monotonic()
        known = recipe.is_built(store)
        with _shown(f"Building {name}") as progress:
            recipe.build(store, progress)
        _print_image(store, name, as_json, built=not known, seconds=round(time.monotonic() - begun, 3))


@app.command("import")
def import_(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="An OVA, or a qcow2, raw, ISO, VMDK, VDI or VHDX file that stands alone."),
    ],
    name: Annotated[str | None, typer.Option(help="What people see. Default: the file's name.")] = None,
    disk_format: Annotated[
        Format | None, typer.Option("--format", help="Default: what the file's name and first bytes agree on.")
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(
            min=LEAST_MEMORY_MIB,
            max=MOST_MEMORY_MIB,
            help=f"Memory of a desktop in MiB. Default: what an OVA says, else {DEFAULT_MEMORY_MIB}.",
        ),
    ] = None,
    vcpus: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_VCPUS, help=f"Processors of a desktop. Default: what an OVA says, else {DEFAULT_VCPUS}."
        ),
    ] = None,
    disk_bus: Annotated[
        DiskBus | None, typer.Option(help="Default: sata for disks of other products, else virtio.")
    ] = None,
    firmware: Annotated[Firmware | None, typer.Option(help="Default: what an OVA says, else bios.")] = None,
    new_id: Annotated[
        str | None, typer.Option("--id", help="What programs call it. Default: made from the name.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Take a disk image into the store, after checking that it is what it claims and refers to no other file."""
    with _outcome(as_json):
        store, begun = open_store(), time.monotonic()
        with _shown(f"Importing {shown(file.name, 60)}") as progress:
            manifest = import_image(
                store, file, name=name, new_id=new_id, disk_format=_format(disk_format), memory_mib=memory,
                vcpus=vcpus, disk_bus=disk_bus, firmware=firmware, progress=progress,
            )  # fmt: skip
        _print_image(store, manifest.spec.id, as_json, seconds=round(time.monotonic() - begun, 3))


def _format(name: Format | None) -> AnyFormat | None:
    if name is None:
        return None
    return Foreign(name.value) if name.value in [*Foreign] else DiskFormat(name.value)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Every image that is here, being made, or failed to be made."""
    with _outcome(as_json):
        copies = open_store().copies()
        if as_json:
            print(json.dumps({"items": [_as_dict(copy) for copy in copies], "next": None}, indent=2))
            return
        table = Table("Image", "Name", "State", "Memory", "Processors", "What it is")
        for copy in copies:
            image = copy.image
            state = image.state if image.progress is None else f"{image.state} {image.progress:.0%}"
            told = " ".join(filter(None, (image.description, f"({image.reason})" if image.reason else "")))
            memory, vcpus = (f"{image.memory_mib} MiB", str(image.vcpus)) if image.memory_mib else ("", "")
            table.add_row(image.id, image.name, state, memory, vcpus, told)
        # A name in brackets is a name, and no markup.
        console = Console(markup=False, emoji=False, highlight=False)
        console.print(table if copies else "No images yet. Build one: pupitre image build tiny")


@app.command()
def sign(
    images: Annotated[list[str] | None, typer.Argument(metavar="[ID]…", help="Without, all of them.")] = None,
    as_json: Json = False,
) -> None:
    """Sign images that nobody has signed, where they were published. A cluster takes no others.

    Importing and building sign by themselves; images of earlier versions have no signature.
    """
    with _outcome(as_json):
        store = open_store()
        for image in images or ():
            store.manifest(image)
        signed = ensure_signed(store.root, images or None)
        key = publisher(store.root) / "publisher.pub"
        if as_json:
            print(json.dumps({"signed": signed, "publisher": str(key)}))
        else:
            print(f"Signed: {', '.join(signed) or 'nothing; all that can be is signed already'}.")
            print(f"A cluster on another machine knows the publisher by {key}, copied into its folder pki/publishers.")


@app.command()
def remove(image: Annotated[str, typer.Argument(metavar="ID")], as_json: Json = False) -> None:
    """Remove an image. Desktops that run from it go on until they are stopped."""
    with _outcome(as_json):
        open_store().remove(image)
        print(json.dumps({"id": image, "removed": True}) if as_json else f"Removed {image}.")


def _print_image(store: ImageStore, image_id: str, as_json: bool, **more: Any) -> None:
    copy = next(copy for copy in store.copies() if copy.image.id == image_id)
    if as_json:
        print(json.dumps(_as_dict(copy) | more, indent=2))
    else:
        print(f"{copy.image.name} is ready as {image_id} ({more['seconds']:.1f} s).")


def _as_dict(copy: ImageCopy) -> dict[str, Any]:
    return asdict(copy.image) | {"spec": asdict(copy.spec) if copy.spec else None}


@contextmanager
def _outcome(as_json: bool) -> Iterator[None]:
    """Outcome as JSON: an error is an object on standard output too; `cli.main` adds sentence and exit code."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    except PupitreError as error:
        if as_json:
            print(json.dumps({"error": {"code": error.code, "reason": shown(str(error), 4000)}}))
        raise


def _stop(_signal: int, _frame: object) -> NoReturn:
    """SIGTERM unwinds like Ctrl-C, so that what was begun is taken back."""
    raise SystemExit(128 + signal.SIGTERM)


@contextmanager
def _shown(title: str) -> Iterator[Progress]:
    """A bar on a terminal; elsewhere a line for each step and each tenth, with the seconds it has taken."""
    console, begun = Console(stderr=True), time.monotonic()
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Bar(*columns, console=console, transient=True) as bar:
            task = bar.add_task(title, total=1.0)
            yield lambda step, fraction: bar.update(task, description=step, completed=fraction)
        return
    told: set[str] = set()
    shown = 0.0

    def line(step: str, fraction: float) -> None:
        nonlocal shown
        if step not in told or fraction >= shown + 0.1:
            told.add(step)
            shown = fraction
            print(f"{title}: {fraction:4.0%} {time.monotonic() - begun:6.1f} s  {step}", file=sys.stderr, flush=True)

    yield line


if __name__ == "__main__":
    app()
