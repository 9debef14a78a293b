"""Browsers that somebody has signed in with before: a lock that strangers caused does not concern them.

A cookie holds one entry for each of the last `MOST` accounts. An entry names an account
and a random id, ends by itself, and is signed with a key derived from the one that signs
tickets, which all portals share. The signature covers the account's password hash, so
that a new password makes every entry of the account worthless. An entry opens nothing:
it only says where a wrong password is counted.
"""

import base64
import hmac
import secrets

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from fastapi import Request, Response

COOKIE = "pupitre_device"
PATH = "/signin"
"""No other page needs it, so browsers send it to no other."""
MOST = 8
LIFE = 180 * 24 * 3600
"""Seconds."""
MAX_LENGTH = 4096


class Devices:
    def __init__(self, signer: Ed25519PrivateKey) -> None:
        derive = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"pupitre known browsers")
        self._key = derive.derive(signer.private_bytes_raw())

    def find(self, cookie: str, user_id: str, password_hash: str, *, now: float) -> str | None:
        """The id of this browser, if this account knows it. ``now`` in Unix seconds."""
        for entry in _entries(cookie):
            user, device, ends, signature = entry.split(".")
            if user == user_id and hmac.compare_digest(signature, self._sign(user, device, ends, password_hash)):
                return device if int(ends) > now else None
        return None

    def remember(self, cookie: str, user_id: str, password_hash: str, *, now: float) -> str:
        """The cookie's new value: this account first, the others as they were."""
        device = self.find(cookie, user_id, password_hash, now=now) or secrets.token_hex(8)
        ends = str(int(now) + LIFE)
        entry = ".".join((user_id, device, ends, self._sign(user_id, device, ends, password_hash)))
        others = [other for other in _entries(cookie) if not other.startswith(f"{user_id}.")]
        return "~".join((entry, *others[: MOST - 1]))

    def _sign(self, user: str, device: str, ends: str, password_hash: str) -> str:
        said = "\0".join((user, device, ends, password_hash)).encode()
        return base64.urlsafe_b64encode(hmac.digest(self._key, said, "sha256")).rstrip(b"=").decode()


def cookie_of(request: Request) -> str:
    return request.cookies.get(COOKIE, "")


def set_cookie(response: Response, value: str, *, secure: bool) -> None:
    response.set_cookie(
        COOKIE,
        value,
        max_age=LIFE,
        path=PATH,
        secure=secure,
        httponly=True,
        samesite="strict",
    )


def _entries(cookie: str) -> list[str]:
    """Parts of the cookie that have the form of an entry; only the signature says whether one is ours."""
    if len(cookie) > MAX_LENGTH or not cookie.isascii():
        return []
    parts = (entry.split(".") for entry in cookie.split("~"))
    return [".".join(part) for part in parts if len(part) == 4 and part[2].isdecimal() and len(part[2]) < 12]
