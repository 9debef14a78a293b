"""scripts/setup: what it refuses, what it says, and that nothing is done twice."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import ROOT

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
    assert "fly is not one of run, test, test-other, check, bench" in done.stderr


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda one: one.name)
def test_interrupted_setup_leaves_no_process_and_no_log(tmp_path: Path, number: signal.Signals) -> None:
    folder = tree(tmp_path / "tree")
    logs = tmp_path / "logs"
    logs.mkdir()
    program(folder, "id", "echo 0")
    program(folder, "dpkg-query", "true")
    program(folder, "apt-get", f"sleep 300 & echo $! >{tmp_path}/new && mv {tmp_path}/new {tmp_path}/pid; wait")
    setup = subprocess.Popen(
        # Whoever runs the tests in the background has the signal ignored, and bash could not be interrupted.
        ["env", f"--default-signal={number.name[3:]}", "/bin/bash", folder / "scripts/setup", "run"],
        env={"PATH": f"{folder}/programs:{os.environ['PATH']}", "TMPDIR": str(logs)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    begun = wait_for(tmp_path / "pid")
    assert len(list(logs.iterdir())) == 1
    os.kill(setup.pid, number)
    setup.wait(20)
    psutil.wait_procs([begun], timeout=20)
    assert not begun.is_running()
    assert list(logs.iterdir()) == []


def wait_for(path: Path) -> psutil.Process:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return psutil.Process(int(path.read_text()))


def test_a_machine_without_dpkg_is_told_so(tmp_path: Path) -> None:
    folder = tree(tmp_path)
    (folder / "programs/dirname").symlink_to("/usr/bin/dirname")
    done = run(folder, "run", path=str(folder / "programs"))
    assert done.returncode == 2
    assert "Debian 12 and later, and Ubuntu" in done.stderr


def test_other_python_is_left_out_where_there_is_none(tmp_path: Path) -> None:
    folder = tree(tmp_path)
    for name in ("dirname", "sort", "tail", "cut", "rm"):
        (folder / "programs" / name).symlink_to(shutil.which(name) or name)
    done = run(folder, "test-other", path=str(folder / "programs"))
    if os.access("/usr/bin/python3", os.X_OK):  # it is always looked for there; .venv is what differs from it
        (folder / ".venv/bin").mkdir(parents=True)
        (folder / ".venv/bin/python").symlink_to("/usr/bin/python3")
        done = run(folder, "test-other", path=str(folder / "programs"))
    assert done.returncode == 0, done.stderr
    assert "There is no other Python here" in done.stdout


@pytest.mark.parametrize("name", ["run", "dev", "build"])
def test_lock_files_have_hashes_and_name_no_host(name: str) -> None:
    """Threat 21: every package has digests of its own, and none says where it comes from."""
    text = (ROOT / f"requirements/{name}.lock").read_text()
    requirements = [block for block in re.split(r"\n(?=\S)", text) if not block.startswith("#")]
    assert len(requirements) >= 4
    for block in requirements:
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+", block), block
        assert "--hash=sha256:" in block, block
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host|^-e", text, re.MULTILINE)


def test_setup_installs_nothing_without_its_hash() -> None:
    """Threat 21: pip from lock files with ``--require-hashes``, npm by ``ci`` and without the packages' own scripts."""
    text = SETUP.read_text()
    installs = [line for line in text.splitlines() if re.search(r"\bpip install\b", line)]
    assert len(installs) == 3
    for line in installs:
        assert "--require-hashes" in line or "--no-deps" in line, line
    assert "npm ci --ignore-scripts" in text
    assert "npm install" not in text


def test_list_of_parts_names_all_that_is_locked() -> None:
    """Threat 21: what a run consists of can be printed, with digests."""
    printed = subprocess.run([sys.executable, ROOT / "scripts/sbom"], capture_output=True, text=True, check=True)
    document = json.loads(printed.stdout)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    parts = {part["purl"]: part for part in document["components"]}
    locked = re.findall(r"^([\w.-]+)(?:\[.*\])?==([^\s;]+)", (ROOT / "requirements/run.lock").read_text(), re.MULTILINE)
    assert {f"pkg:pypi/{name}@{version}" for name, version in locked} <= parts.keys()
    for name in json.loads((ROOT / "package.json").read_text())["dependencies"]:
        assert any(purl.startswith(f"pkg:npm/{name.replace('@', '%40')}@") for purl in parts), name
    assert "pkg:deb/debian/qemu-system-x86" in parts
    assert all(part["hashes"] for purl, part in parts.items() if not purl.startswith("pkg:deb/"))


def test_the_npm_lock_names_no_host() -> None:
    text = (ROOT / "package-lock.json").read_text()
    assert '"resolved"' not in text
    assert '"integrity"' in text
