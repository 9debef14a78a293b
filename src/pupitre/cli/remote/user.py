"""``pupitre user``: accounts, straight in the database ``accounts`` of the portal's machine."""

import asyncio
import sys
from dataclasses import replace
from datetime import datetime
from typing import Annotated

import typer

from pupitre import config
from pupitre.cli.output import Json, print_items, print_json
from pupitre.domain.people.access import Role, User
from pupitre.domain.people.throttle import Tally, is_locked, limits
from pupitre.errors import Invalid
from pupitre.runtime.clock import now_ms

app = typer.Typer(add_completion=False, help="Accounts, their passwords and tokens.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME")]
FromInput = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input instead of making one.")
]
DisplayName = Annotated[str, typer.Option("--display-name", help="How pages show them, as Ana Díaz.")]
Ask = Annotated[bool, typer.Option("--ask", help="Ask for the password at the terminal instead of making one.")]


@app.command()
def add(
    name: Name,
    role: Annotated[Role, typer.Option(help="What they may do.")] = Role.STUDENT,
    display_name: DisplayName = "",
    password_stdin: FromInput = False,
    ask: Ask = False,
    as_json: Json = False,
) -> None:
    """Add a user; without a further option a readable password is made and printed once.

    NAME is what they type to sign in: letters, digits and . _ - + ' @, capitals or not.
    """
    asyncio.run(_add(name, role, display_name, *_password(password_stdin, ask), as_json))


@app.command("list")
def list_(as_json: Json = False) -> None:
    """All users."""
    users = asyncio.run(_users())
    items = [_item(user) for user in users]
    columns = {"name": "Name", "display_name": "Shown as", "role": "Role", "id": "Id"}
    print_items(items, columns, as_json=as_json, none="No users. Add one: pupitre user add NAME")


@app.command()
def token(
    name: Name,
    days: Annotated[float, typer.Option(min=0.001, help="How long it is good for.")] = 30,
    as_json: Json = False,
) -> None:
    """A bearer token for the REST API. It is printed once and cannot be read again."""
    from pupitre.cli.local.accounts import open_session
    from pupitre.store.audit import Act

    made = asyncio.run(open_session(config.load(), name, days * 24 * 3600, Act.TOKEN_MADE))
    if as_json:
        print_json({"token": made, "name": name, "days": days})
    else:
        print(made)


@app.command()
def password(name: Name, password_stdin: FromInput = False, ask: Ask = False, as_json: Json = False) -> None:
    """Set a new password; every sign-in and token of the user ends."""
    asyncio.run(_set_password(name, *_password(password_stdin, ask), as_json))


@app.command()
def role(name: Name, role: Annotated[Role, typer.Argument(metavar="ROLE")], as_json: Json = False) -> None:
    """Change what a user may do; every sign-in and token of the user ends."""
    user = asyncio.run(_set_role(name, role))
    _print_user(user, None, as_json, "A new role for")


@app.command("display-name")
def display_name_(
    name: Name,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Empty for none.")],
    as_json: Json = False,
) -> None:
    """Change how pages show a user. What they type to sign in stays."""
    user = asyncio.run(_set_display_name(name, text))
    _print_user(user, None, as_json, "A new name to be shown for")


@app.command()
def locks(as_json: Json = False) -> None:
    """Sign-ins that are refused after too many wrong passwords."""
    items = [
        {
            "counted": lock.counter.kind.value,
            "name": lock.counter.name,
            "address": lock.counter.address,
            "failures": lock.failures,
            "until": datetime.fromtimestamp(lock.until / 1000).astimezone().isoformat(timespec="seconds"),
        }
        for lock in asyncio.run(_locks())
    ]
    columns = {"counted": "By", "name": "Name", "address": "Address", "failures": "Failures", "until": "Until"}
    print_items(items, columns, as_json=as_json, none="Nobody is locked out.")


@app.command()
def unlock(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Whose locks; all of them when left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Lift locks, also those of addresses where NAME is left out: failures are counted anew."""
    lifted = asyncio.run(_unlock(name))
    if as_json:
        print_json({"lifted": lifted})
    else:
        print(f"Lifted {lifted} lock{'' if lifted == 1 else 's'}.")


@app.command()
def remove(name: Name, as_json: Json = False) -> None:
    """Remove a user and stop their desktops; every sign-in and token ends."""
    user = asyncio.run(_remove(name))
    if as_json:
        print_json({"name": user.name, "removed": True})
    else:
        print(f"Removed {user.name}.")


def _password(from_input: bool, ask: bool) -> tuple[str, bool]:
    """The password, and whether it was made here and so must be shown."""
    if from_input and ask:
        raise Invalid("--password-stdin and --ask contradict each other. Give one of them.")
    if from_input:
        from pupitre.domain.people.password import decoded

        given = decoded(sys.stdin.buffer.readline())
        if not given:
            raise Invalid("There was no password on standard input.")
        return given, False
    if ask:
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True)), False
    from pupitre.up.demo import readable_password

    return readable_password(), True


async def _add(name: str, role: Role, display_name: str, given: str, shown: bool, as_json: bool) -> None:
    import uuid_utils

    from pupitre.cli.local.accounts import open_account_databases
    from pupitre.domain.people.username import checked, checked_display
    from pupitre.portal.identity.passwords import hash_password
    from pupitre.store.audit import Act

    user = User(str(uuid_utils.uuid7()), checked(name), role, checked_display(display_name))
    hashed = hash_password(given, user.name, user.display_name)
    async with open_account_databases(config.load()) as databases:
        await databases.accounts.add_user(user, hashed, now=now_ms())
        await databases.note(Act.USER_ADDED, user.name, role)
    _print_user(user, given if shown else None, as_json, "Added")


async def _set_password(name: str, given: str, shown: bool, as_json: bool) -> None:
    from pupitre.cli.local.accounts import find_user, open_account_databases
    from pupitre.portal.identity.passwords import hash_password
    from pupitre.store.audit import Act

    async with open_account_databases(config.load()) as databases:
        user = await find_user(databases.accounts, name)
        await databases.accounts.set_password(user.id, hash_password(given, user.name, user.display_name))
        await databases.note(Act.PASSWORD_CHANGED, user.name)
    _print_user(user, given if shown else None, as_json, "A new password for")


async def _set_role(name: str, role: Role) -> User:
    from pupitre.cli.local.accounts import find_user, open_account_databases
    from pupitre.store.audit import Act

    async with open_account_databases(config.load()) as databases:
        user = await find_user(databases.accounts, name)
        await databases.accounts.set_role(user.id, role)
        await databases.note(Act.ROLE_CHANGED, user.name, f"from {user.role} to {role}")
    return replace(user, role=role)


async def _set_display_name(name: str, text: str) -> User:
    from pupitre.cli.local.accounts import find_user, open_account_databases
    from pupitre.domain.people.username import checked_display
    from pupitre.store.audit import Act

    shown = checked_display(text)
    async with open_account_databases(config.load()) as databases:
        user = await find_user(databases.accounts, name)
        await databases.accounts.set_display_name(user.id, shown)
        await databases.note(Act.DISPLAY_NAME_CHANGED, user.name, shown)
    return replace(user, display_name=shown)


async def _remove(name: str) -> User:
    from pupitre.cli.local.accounts import find_user, open_account_databases
    from pupitre.portal.identity.users import stop_desktops
    from pupitre.portal.live.status_mirror import StatusMirror
    from pupitre.store.audit import Act
    from pupitre.store.sql.engine import open_database
    from pupitre.store.status import Status

    settings = config.load()
    status = open_database(settings, "portal", "status", read_only=True)
    try:
        async with open_account_databases(settings) as databases:
            user = await find_user(databases.accounts, name)
            await databases.accounts.remove_user(user.id)
            await databases.note(Act.USER_REMOVED, user.name, user.role)
            await stop_desktops(settings, databases.commands, StatusMirror(Status(status)), user)
        return user
    finally:
        await status.close()


async def _locks() -> list[Tally]:
    from pupitre.cli.local.accounts import open_account_databases

    settings = config.load()
    now, table = now_ms(), limits(settings.sign_in_per_minute)
    async with open_account_databases(settings) as databases:
        return [tally for tally in await databases.failures.in_force(now=now) if is_locked(tally, table, now)]


async def _unlock(typed: str | None) -> int:
    from pupitre.cli.local.accounts import open_account_databases
    from pupitre.domain.people.username import checked
    from pupitre.store.audit import Act

    name = None if typed is None else checked(typed)
    lifted = [lock.counter for lock in await _locks() if name in (None, lock.counter.name)]
    async with open_account_databases(config.load()) as databases:
        await databases.failures.forget(lifted)
        for counter in lifted:
            await databases.note(Act.LOCK_LIFTED, counter.name or counter.address, counter.kind)
    return len(lifted)


async def _users() -> list[User]:
    from pupitre.cli.local.accounts import open_account_databases

    async with open_account_databases(config.load()) as databases:
        return await databases.accounts.users()


def _item(user: User) -> dict[str, str]:
    return {"id": user.id, "name": user.name, "role": user.role.value, "display_name": user.display_name}


def _print_user(user: User, shown: str | None, as_json: bool, done: str) -> None:
    if as_json:
        print_json(_item(user) | ({"password": shown} if shown else {}))
    else:
        print(f"{done} {user.name} ({user.role.value})." + (f" Password: {shown}" if shown else ""))
