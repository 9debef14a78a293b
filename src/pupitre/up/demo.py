"""The demonstration accounts, and the file that holds their passwords for whoever owns this machine."""

import json
import os
import secrets

import uuid_utils

from pupitre.config import Settings
from pupitre.domain.people.access import Role, User
from pupitre.portal.identity.passwords import hash_password
from pupitre.runtime.clock import now_ms
from pupitre.store.accounts import Accounts
from pupitre.store.sql.engine import open_database
from pupitre.up.demo_accounts import accounts_file, read_accounts

_CONSONANTS, _VOWELS = "bdfghjkmnprstvz", "aeiou"


def readable_password() -> str:
    """Eight syllables: easy to read aloud and to type, 49 bits, and sign-ins are limited in number."""
    return "-".join("".join(secrets.choice(_CONSONANTS) + secrets.choice(_VOWELS) for _ in "ab") for _ in "abcd")


async def ensure_accounts(settings: Settings) -> None:
    """One account for each role. Those already there keep their passwords.

    The file is written before the rows, so that no password is ever lost half-way.
    """
    known = {entry["name"]: entry["password"] for entry in read_accounts(settings)}
    database = open_database(settings, "portal", "accounts")
    try:
        accounts = Accounts(database)
        missing = [role for role in Role if await accounts.user_named(role.value) is None]
        if not missing:
            return
        for role in missing:
            known.setdefault(role.value, readable_password())
        _write(settings, known)
        for role in missing:
            user = User(str(uuid_utils.uuid7()), role.value, role)
            hashed = hash_password(known[role.value])
            await accounts.add_user(user, hashed, now=now_ms())
    finally:
        await database.close()


def _write(settings: Settings, passwords: dict[str, str]) -> None:
    path = accounts_file(settings)
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    entries = [{"name": name, "role": name, "password": password} for name, password in passwords.items()]
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(entries, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
