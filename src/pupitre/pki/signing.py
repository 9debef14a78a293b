"""Keys (Ed25519) with which a process signs what others show it later; each is made on first use."""

import contextlib
import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pupitre.errors import SetupError

ORDER_KEY = "order.key"
"""The cluster's, beside its certificate. Every cluster server needs the same one: see docs/design/messages.md."""


def ensure_key(path: Path) -> Ed25519PrivateKey:
    """The key in ``path``, made (mode 0600) if there is none; of two that make it at once, one. Raises `SetupError`."""
    try:
        if not path.exists():
            _make(path)
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it holds no key"
        raise SetupError(
            f"The key {path} cannot be used: {why}.", "Put it back from a backup, or move it away for a new one."
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SetupError(f"{path} is no Ed25519 key.", "Put it back from a backup, or move it away for a new one.")
    return key


def replace_key(path: Path) -> None:
    """A new key in place of whatever there was. Raises `SetupError`."""
    path.unlink(missing_ok=True)
    ensure_key(path)


def public_half(key: Ed25519PrivateKey) -> str:
    """Public key in hex, 64 characters."""
    return key.public_key().public_bytes_raw().hex()


def _make(path: Path) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(new, path)  # never over one that was made meanwhile
    finally:
        new.unlink(missing_ok=True)
