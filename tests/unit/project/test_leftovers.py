"""A test leaves nothing behind, and a run of the tests no process, whatever fails in it."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests import ROOT
from tests.rigs.local_cluster import local_cluster

CARELESS = """
import subprocess


def test_that_forgets() -> None:
    subprocess.Popen(["setsid", "--fork", "sleep", "1000"]).wait()
"""


LEAKING = """
import asyncio
import socket
import subprocess
import threading

import pytest

KEPT = []


def test_thread() -> None:
    threading.Thread(target=threading.Event().wait, name="forgotten", daemon=True).start()


def test_process() -> None:
    KEPT.append(subprocess.Popen(["sleep", "20"]))


def test_socket() -> None:
    KEPT.append(socket.create_server(("127.0.0.1", 0)))


def test_file(tmp_path) -> None:
    KEPT.append((tmp_path / "forgotten").open("w"))


@pytest.mark.anyio
async def test_task() -> None:
    KEPT.append(asyncio.create_task(asyncio.Event().wait(), name="forgotten"))


def test_tidy() -> None:
    pass
"""


def run_tests(folder: Path, text: str) -> "subprocess.CompletedProcess[str]":
    (folder / "test_careless.py").write_text(text)
    return subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-n", "0"),
            *("-p", "no:cacheprovider", "-W", "ignore", "-p", "tests.conftest"),
            *(f"--confcutdir={folder}", f"--rootdir={folder}", str(folder)),
        ],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_test_that_leaves_something_behind_fails(tmp_path: Path) -> None:
    done = run_tests(tmp_path, LEAKING)
    failed = set(re.findall(r"^ERROR .*::(\w+)", done.stdout, re.MULTILINE))
    assert failed == {"test_thread", "test_process", "test_socket", "test_file", "test_task"}, done.stdout
    for words in ("thread forgotten", "process sleep", "socket:", "/forgotten", "task forgotten"):
        assert re.search(rf"left behind: .*{words}", done.stdout), words


def test_run_that_leaves_a_process_fails_and_ends_it(tmp_path: Path) -> None:
    done = run_tests(tmp_path, CARELESS)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    pid, _, command = done.stdout.partition("left processes behind:")[2].split("\n")[1].strip().partition(" ")
    assert command == "sleep 1000"
    assert not psutil.pid_exists(int(pid))


@pytest.mark.anyio
async def test_broker_ends_though_a_part_ended_in_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the failure"):
        async with local_cluster(tmp_path, start=()) as here:
            here.start("cluster", fail)
            pid = here.broker.pid
            await asyncio.sleep(0)  # it begins, and fails
    assert not psutil.pid_exists(pid)


async def fail(*_: object) -> None:
    raise RuntimeError("the failure")
