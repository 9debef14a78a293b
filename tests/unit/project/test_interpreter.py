"""What differs between Pythons that Pupitre runs on: Debian 12 has 3.11.2, which lacks later repairs."""

import ast
import asyncio

import pytest

from pupitre.runtime.timeouts import timeout
from pupitre.runtime.workers import ungrouped
from tests import ROOT


class Other(Exception):
    pass


async def fail(error: Exception) -> None:
    raise error


async def expire_while_cancelled() -> str:
    """What a limit that passes ends in, in a task that was cancelled before."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        try:
            async with timeout(0.01):
                await asyncio.sleep(60)
        except TimeoutError:
            return "timed out"
    raise AssertionError


async def wait_under_limit() -> None:
    async with timeout(60):
        await asyncio.sleep(60)


@pytest.mark.anyio
async def test_limit_holds_in_a_cancelled_task() -> None:
    task = asyncio.create_task(expire_while_cancelled())
    await asyncio.sleep(0)
    task.cancel()
    assert await task == "timed out"


@pytest.mark.anyio
async def test_limit_lets_a_cancellation_through() -> None:
    task = asyncio.create_task(wait_under_limit())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.anyio
async def test_limit_inside_another_ends_alone() -> None:
    async with timeout(60) as outer:
        with pytest.raises(TimeoutError):
            async with timeout(0):
                await asyncio.sleep(60)
        async with timeout(None):
            await asyncio.sleep(0)
    assert not outer.expired()


@pytest.mark.anyio
async def test_single_error_of_a_group_is_raised_bare() -> None:
    with pytest.raises(LookupError, match="first"), ungrouped(LookupError):
        async with asyncio.TaskGroup() as outer:

            async def nest() -> None:
                async with asyncio.TaskGroup() as inner:
                    inner.create_task(fail(KeyError("first")))

            outer.create_task(nest())


@pytest.mark.anyio
async def test_other_errors_of_a_group_are_not_hidden() -> None:
    with pytest.raises(ExceptionGroup) as raised, ungrouped(LookupError):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail(KeyError("first")))
            tasks.create_task(fail(Other()))
    assert {type(error) for error in raised.value.exceptions} == {KeyError, Other}


def test_nothing_is_raised_inside_except_star() -> None:
    """Before Python 3.11.4 it comes out in a group of its own."""
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        for block in ast.walk(ast.parse(path.read_text())):
            if isinstance(block, ast.TryStar):
                inside = [node for handler in block.handlers for node in ast.walk(handler)]
                assert not [node.lineno for node in inside if isinstance(node, ast.Raise | ast.Await)], path


def test_no_archive_is_unpacked_by_tarfile_unfiltered() -> None:
    """Before Python 3.11.4 there is no ``filter``: a member's name is read and checked, never handed to ``extract``."""
    for path in (ROOT / "src").rglob("*.py"):
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not names & {"extractall", "unpack_archive"}, path
