"""A run of the tests leaves no process behind, whatever fails in it."""

import asyncio
import os
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
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
"""


def test_run_that_leaves_a_process_fails_and_ends_it(tmp_path: Path) -> None:
    (tmp_path / "test_careless.py").write_text(CARELESS)
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-n", "0"),
            *("--no-cov", "-p", "no:cacheprovider", "-W", "ignore", "-p", "tests.conftest"),
            *(f"--confcutdir={tmp_path}", f"--rootdir={tmp_path}", str(tmp_path)),
        ],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
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
