"""Files that ``pupitre desktop viewer`` writes: a connection file that only its owner can read, and our authority.

remote-viewer knows the hosts of VNC connections by ``.pki/CA/cacert.pem`` in the home that the
user database names (never ``$HOME``), which may hold several authorities; ours is added to it,
and nothing in it is taken away.
"""

import os
import pwd
from pathlib import Path

from pupitre.errors import SetupError

AUTHORITIES = Path(".pki/CA/cacert.pem")


def home() -> Path:
    """Folder in which remote-viewer of this user looks for `AUTHORITIES`. Raises `SetupError`."""
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        raise SetupError(
            f"The user with number {os.getuid()} is not in this machine's user database.",
            "Fetch the file as a user that is.",
        ) from None


def write_connection(path: Path, text: str) -> None:
    """Write ``text``, which holds a password, for the owner alone, never through a link. Raises `SetupError`."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
            file.write(text)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise SetupError(f"{path} cannot be written: {error.strerror}.", "Choose another with --output.") from error


def knows(home: Path, authority: bytes) -> bool:
    """Whether remote-viewer of this user believes ``authority`` (PEM)."""
    file = home / AUTHORITIES
    return file.exists() and authority.strip() in file.read_bytes()


def add_authority(home: Path, authority: bytes) -> Path:
    """Have remote-viewer believe it. May be repeated. Raises `SetupError`."""
    file = home / AUTHORITIES
    if not knows(home, authority):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("ab") as certificates:
                certificates.write(authority.strip() + b"\n")
        except OSError as error:
            raise SetupError(
                f"{file} cannot be written: {error.strerror}.", "Make it writable, or do without --ca."
            ) from error
    return file
