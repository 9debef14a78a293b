"""Debian packages, by this machine's own apt: what it trusts and where it fetches from is the machine's setting.

Nothing is installed, and no right is needed.
"""

import platform
import re
from pathlib import Path

from pupitre.errors import ImageFault, SetupError
from pupitre.images.programs import run
from pupitre.images.progress import Progress

UPDATE = "Run: sudo apt-get update"


def newest_kernel(meta_package: str) -> str:
    """The package that ``meta_package`` (as linux-image-amd64) stands for today."""
    try:
        text = run(["apt-cache", "--no-all-versions", "show", meta_package])
    except ImageFault as error:
        raise SetupError(f"apt knows no package {meta_package}.", UPDATE) from error
    found = re.search(r"^Depends:.*?(linux-image-[0-9][\w.+-]*)", text, re.MULTILINE)
    if not found:
        raise SetupError(f"apt knows {meta_package}, but not the kernel it stands for.", UPDATE)
    return found[1]


def unpack(packages: list[str], folder: Path, progress: Progress) -> None:
    """Downloads ``packages`` (without what they depend on) and unpacks them below ``folder``."""
    archives = folder.with_suffix(".debs")
    archives.mkdir()
    progress("Downloading " + ", ".join(packages), 0.0)
    # The sandbox user could not write into our folder; apt checks signatures and hashes either way.
    run(["apt-get", "-o", "APT::Sandbox::User=", "download", *packages], cwd=archives)
    found = sorted(archives.glob("*.deb"))
    for number, archive in enumerate(found):
        progress(f"Unpacking {archive.name.split('_')[0]}", 0.6 + 0.4 * number / len(found))
        run(["dpkg-deb", "-x", archive, folder])
        archive.unlink()
    archives.rmdir()


def sources() -> list[str]:
    """One-line apt sources of the Debian suites this machine uses (no third party's). Raises `SetupError`."""
    fields = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)"
    text = run(["apt-get", "indextargets", "--format", fields, "Created-By: Packages"])
    suites: dict[tuple[str, str], list[str]] = {}
    for line in text.splitlines():
        uri, suite, component, origin = ([*line.split(maxsplit=3), "", "", "", ""])[:4]
        if origin == "Debian":
            components = suites.setdefault((uri, suite), [])
            if component not in components:
                components.append(component)
    if not suites:
        raise SetupError("apt has no lists of Debian packages.", UPDATE)
    return [f"deb {uri} {suite} {' '.join(components)}" for (uri, suite), components in suites.items()]


def suite() -> str:
    """The release this machine runs on (as bookworm), which is what its apt knows best."""
    release = platform.freedesktop_os_release()
    if release.get("ID") != "debian" or "VERSION_CODENAME" not in release:
        raise SetupError("This machine's apt has no Debian release.", "Build the image on Debian, then import it.")
    return release["VERSION_CODENAME"]
