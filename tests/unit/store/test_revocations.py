"""A sign-in leaves a word behind when it is ended, in the same transaction, on every database."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pupitre.domain.people.access import Role, User
from pupitre.store.accounts import Accounts, SessionKind
from pupitre.store.revocations import Revocation, Revocations
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
    assert await accounts.revocations() == [Revocation("0", LATER)]
    await accounts.set_role(USER.id, Role.TEACHER)
    assert sorted(await accounts.revocations()) == [Revocation("0", LATER), Revocation("1", LATER + 1)]
    await accounts.remove_user(OTHER.id)
    assert sorted(await accounts.revocations())[2:] == [Revocation("2", LATER + 2)]
    await accounts.forget_revocations(["0", "1", "2"])
    assert await accounts.revocations() == []


async def test_a_new_password_ends_them_all_and_no_other_users(accounts: Accounts) -> None:
    await accounts.set_password(USER.id, "new")
    assert sorted(await accounts.revocations()) == [Revocation("0", LATER), Revocation("1", LATER + 1)]
    assert await accounts.session("2", now=1)


async def test_revocation_without_screen_is_not_recorded(accounts: Accounts) -> None:
    """One that opened no screen and one that never was say nothing."""
    assert await accounts.close_session("0", watched=False)
    assert not await accounts.close_session("0")
    assert not await accounts.close_session("no such")
    assert await accounts.revocations() == []


async def test_endpoint_reads_and_forgets_revocations(tmp_path: Path) -> None:
    """The endpoint finds what the portal wrote and forgets what is told."""
    async with database(tmp_path, "commands", "portal") as ours, database(tmp_path, "commands", "endpoint") as theirs:
        written, read = Revocations(ours), Revocations(theirs)
        await written.add([Revocation("a", LATER), Revocation("b", LATER), Revocation("c", 5)])
        await written.add([Revocation("a", LATER)])
        assert await read.to_send() == ["a", "b", "c"]
        await read.mark_sent(["a"], now=10)
        assert await read.to_send() == ["b"]
        await written.add([])
        await read.mark_sent([], now=10)
        assert await read.to_send() == ["b"]
