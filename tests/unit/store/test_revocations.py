"""A sign-in leaves a word behind when it is ended, in the same transaction, on every database."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pupitre.domain.people.access import Role, User
from pupitre.store.accounts import Accounts, SessionKind
from pupitre.store.revocations import Ending, Endings
from tests.rigs.databases import database

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_database")]

USER, OTHER = User("u1", "one", Role.STUDENT), User("u2", "two", Role.STUDENT)
LATER = 10_000_000_000_000


@pytest.fixture
async def accounts(tmp_path: Path) -> AsyncIterator[Accounts]:
    async with database(tmp_path, "accounts", "portal") as opened:
        accounts = Accounts(opened)
        for user in (USER, OTHER):
            await accounts.add_user(user, "hash", now=1)
        for number, user in enumerate((USER, USER, OTHER)):
            await accounts.open_session(str(number), user.id, SessionKind.BEARER, now=1, expires=LATER + number)
        yield accounts


async def test_every_way_of_ending_a_sign_in_is_told(accounts: Accounts) -> None:
    assert await accounts.close_session("0")
    assert await accounts.ended() == [Ending("0", LATER)]
    await accounts.set_role(USER.id, Role.TEACHER)
    assert sorted(await accounts.ended()) == [Ending("0", LATER), Ending("1", LATER + 1)]
    await accounts.remove_user(OTHER.id)
    assert sorted(await accounts.ended())[2:] == [Ending("2", LATER + 2)]
    await accounts.passed_on(["0", "1", "2"])
    assert await accounts.ended() == []


async def test_a_new_password_ends_them_all_and_no_other_users(accounts: Accounts) -> None:
    await accounts.set_password(USER.id, "new")
    assert sorted(await accounts.ended()) == [Ending("0", LATER), Ending("1", LATER + 1)]
    assert await accounts.session("2", now=1)


async def test_one_that_opened_no_screen_and_one_that_never_was_say_nothing(accounts: Accounts) -> None:
    assert await accounts.close_session("0", watched=False)
    assert not await accounts.close_session("0")
    assert not await accounts.close_session("no such")
    assert await accounts.ended() == []


async def test_the_endpoint_finds_what_the_portal_wrote_and_forgets_what_is_told(tmp_path: Path) -> None:
    async with database(tmp_path, "commands", "portal") as ours, database(tmp_path, "commands", "endpoint") as theirs:
        written, read = Endings(ours), Endings(theirs)
        await written.add([Ending("a", LATER), Ending("b", LATER), Ending("c", 5)])
        await written.add([Ending("a", LATER)])
        assert await read.to_tell() == ["a", "b", "c"]
        await read.told(["a"], now=10)
        assert await read.to_tell() == ["b"]
        await written.add([])
        await read.told([], now=10)
        assert await read.to_tell() == ["b"]
