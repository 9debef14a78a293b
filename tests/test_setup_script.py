"""scripts/setup: what it refuses, what it says, and that nothing is done twice."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUP = ROOT / "scripts/setup"


def tree(folder: Path) -> Path:
    """A source tree with a machine's programs replaced where a test says so."""
    (folder / "scripts").mkdir(parents=True)
    (folder / "programs").mkdir()
    (folder / "scripts/setup").write_text(SETUP.read_text())
    (folder / "scripts/setup").chmod(0o755)
    return folder


def run(folder: Path, *arguments: str, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", str(folder / "scripts/setup"), *arguments],
        env={"PATH": path}, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def program(folder: Path, name: str, lines: str) -> None:
    path = folder / "programs" / name
    path.write_text(f"#!/bin/bash\n{lines}\n")
    path.chmod(0o755)


def test_an_unknown_aim_is_refused(tmp_path: Path) -> None:
    done = run(tree(tmp_path), "fly", path=os.environ["PATH"])
    assert done.returncode == 2
    assert "fly is not one of run, test, check, bench" in done.stderr


def test_without_rights_it_names_the_command_for_root(tmp_path: Path) -> None:
    folder = tree(tmp_path)
    for name in ("dirname", "sort", "comm", "sed"):
        (folder / "programs" / name).symlink_to(f"/usr/bin/{name}" if name != "sed" else "/bin/sed")
    program(folder, "id", "echo 1000")
    program(folder, "dpkg-query", "echo 'installed gcc'")
    done = run(folder, "run", path=str(folder / "programs"))
    assert done.returncode == 2
    assert re.search(r"As root, run: apt-get update && apt-get install .*qemu-system-x86", done.stderr)
    assert " gcc " not in done.stderr, "what is installed is not asked for"
    assert "chromium" not in done.stderr, "a run needs no browser"


def test_a_machine_without_dpkg_is_told_so(tmp_path: Path) -> None:
    folder = tree(tmp_path)
    (folder / "programs/dirname").symlink_to("/usr/bin/dirname")
    done = run(folder, "run", path=str(folder / "programs"))
    assert done.returncode == 2
    assert "Debian 12 and later, and Ubuntu" in done.stderr


@pytest.mark.parametrize("name", ["run", "dev", "build"])
def test_lock_files_have_hashes_and_name_no_host(name: str) -> None:
    text = (ROOT / f"requirements/{name}.lock").read_text()
    requirements = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert requirements
    assert text.count("--hash=sha256:") >= len(requirements)
    assert "://" not in text


def test_the_npm_lock_names_no_host() -> None:
    text = (ROOT / "package-lock.json").read_text()
    assert '"resolved"' not in text
    assert '"integrity"' in text
