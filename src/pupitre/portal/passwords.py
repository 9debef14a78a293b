"""Password hashes (argon2id). An unknown name costs as much time as a wrong password.

Each check takes tens of milliseconds and 64 MiB, so checks run in threads and
only a few at a time: a flood of sign-ins makes sign-ins slow, and nothing else.
"""

import asyncio

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from pupitre.errors import Invalid

MIN_LENGTH = 10
MAX_LENGTH = 512
PARALLEL = 2

_hasher = PasswordHasher()
_DUMMY = _hasher.hash("no one has this password")


def hash_password(password: str) -> str:
    """The argon2id hash to store. Raises `Invalid` when the password is too short or too long."""
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise Invalid(f"A password has {MIN_LENGTH} to {MAX_LENGTH} characters. Choose a longer one, as a few words.")
    return _hasher.hash(password)


def verify(password: str, password_hash: str | None) -> bool:
    """Whether the password fits. ``None`` (no such user) takes as long and is False."""
    try:
        _hasher.verify(password_hash or _DUMMY, password[: MAX_LENGTH + 1])
    except (VerificationError, InvalidHashError):
        return False
    return password_hash is not None


class Checker:
    """Checks and makes hashes in threads, `PARALLEL` at a time."""

    def __init__(self) -> None:
        self.turn = asyncio.Semaphore(PARALLEL)
        """Held during `verify`; what is decided in one turn with it no flood of requests can overtake."""

    async def verify(self, password: str, password_hash: str | None) -> bool:
        return await asyncio.to_thread(verify, password, password_hash)

    async def hash(self, password: str) -> str:
        async with self.turn:
            return await asyncio.to_thread(hash_password, password)
