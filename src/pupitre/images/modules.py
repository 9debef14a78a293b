"""Kernel modules of an unpacked Debian kernel package: which are needed, in the order to load them.

Debian's package has no ``modules.dep`` (depmod runs when it is installed), so the
dependencies are read from each module's own ``depends=`` record.
"""

import lzma
import re
from pathlib import Path

from pupitre.errors import ImageFault

_DEPENDS = re.compile(rb"(?:^|\0)depends=([^\0]*)\0")


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1].split(".ko", maxsplit=1)[0].replace("-", "_")


def read(path: Path) -> bytes:
    """The module, unpacked: the kernel and busybox load plain files."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


class Modules:
    """The modules below ``lib/modules/VERSION``."""

    def __init__(self, folder: Path) -> None:
        self._built_in = {_name(line) for line in (folder / "modules.builtin").read_text().split()}
        self._paths = {_name(path.name): path for path in folder.rglob("*.ko*")}

    def load_order(self, names: list[str]) -> list[tuple[str, bytes]]:
        """Name and content of every module needed, dependencies first. Raises `ImageFault`."""
        order: dict[str, bytes] = {}

        def visit(name: str) -> None:
            if name in self._built_in or name in order:
                return
            if name not in self._paths:
                raise ImageFault(f"Debian's kernel has no module {name}.")
            data = read(self._paths[name])
            if depends := _DEPENDS.search(data):
                for other in depends[1].decode().split(","):
                    if other:
                        visit(other)
            order[name] = data

        for name in names:
            visit(name)
        return list(order.items())
