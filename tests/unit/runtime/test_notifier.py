"""The bell between processes: no ring is lost while someone listens, and ringing never fails."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from pupitre.runtime.notifier import Notifier

pytestmark = pytest.mark.anyio


async def test_every_listener_hears(tmp_path: Path) -> None:
    notifier = Notifier(tmp_path, "topic")
    async with notifier.listen() as one, notifier.listen() as two:
        notifier.notify()
        await asyncio.wait_for(asyncio.gather(one.wait(), two.wait()), 5)


async def test_another_process_rings(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from pupitre.runtime.notifier import Notifier;"
        "Notifier(pathlib.Path(sys.argv[1]), 'topic').notify()"
    )
    async with Notifier(tmp_path, "topic").listen() as listener:
        await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program, str(tmp_path)], check=True)
        await asyncio.wait_for(listener.wait(), 5)


async def test_a_ring_before_waiting_is_not_lost_and_many_are_one(tmp_path: Path) -> None:
    notifier = Notifier(tmp_path, "topic")
    async with notifier.listen() as listener:
        for _ in range(1000):  # more than any queue holds
            notifier.notify()
        await asyncio.wait_for(listener.wait(), 5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(listener.wait(), 0.05)
        notifier.notify()
        await asyncio.wait_for(listener.wait(), 5)


async def test_every_change_is_seen_by_who_looks_after_each_ring(tmp_path: Path) -> None:
    notifier, level = Notifier(tmp_path, "topic"), 0

    async def reader() -> None:
        async with notifier.listen() as listener:
            ready.set()
            while level < 500:
                await listener.wait()

    ready = asyncio.Event()
    task = asyncio.create_task(reader())
    await ready.wait()
    for _ in range(500):
        level += 1
        notifier.notify()
        if level % 7 == 0:
            await asyncio.sleep(0)
    await asyncio.wait_for(task, 5)


async def test_nobody_listens(tmp_path: Path) -> None:
    Notifier(tmp_path, "topic").notify()
    Notifier(tmp_path / "not" / "there", "topic").notify()


async def test_what_a_killed_listener_left_is_swept(tmp_path: Path) -> None:
    program = (
        "import asyncio, os, pathlib, sys; from pupitre.runtime.notifier import Notifier\n"
        "async def main():\n"
        "    async with Notifier(pathlib.Path(sys.argv[1]), 'topic').listen(): os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())"
    )
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program, str(tmp_path)], check=False)
    assert len(list((tmp_path / "topic").iterdir())) == 1
    Notifier(tmp_path, "topic").notify()
    assert list((tmp_path / "topic").iterdir()) == []


async def test_a_folder_deeper_than_a_socket_address_may_be(tmp_path: Path) -> None:
    notifier = Notifier(tmp_path / ("d" * 100) / ("e" * 100), "topic")
    async with notifier.listen() as listener:
        notifier.notify()
        await asyncio.wait_for(listener.wait(), 5)
    assert list(notifier.folder.iterdir()) == []


async def test_what_is_no_socket_does_not_keep_others_from_hearing(tmp_path: Path) -> None:
    notifier = Notifier(tmp_path, "topic")
    async with notifier.listen() as listener:
        (notifier.folder / "a-file").write_text("")
        (notifier.folder / "a-folder").mkdir()
        notifier.notify()
        await asyncio.wait_for(listener.wait(), 5)
