"""This machine's side of the settings: the state folder, its file, the variables of the environment."""

import difflib
import os
import pwd
import stat
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pupitre.errors import SetupError, setup_error

FILE = "pupitre.toml"
PREFIX = "PUPITRE_"
OTHER_VARIABLES = frozenset({"PUPITRE_TOKEN", "PUPITRE_DATABASE_PASSWORD", "PUPITRE_HOST_NAMESPACE_OF"})
"""Variables that are no settings: two secrets of the command line, and a mark of `host.isolation`."""


def default_home() -> Path:
    """``$PUPITRE_HOME``, else ``/var/lib/pupitre`` for root and ``~/.local/share/pupitre`` for anyone else.

    Root's own folder would be closed to QEMU, which runs as a user of its own.
    """
    if given := os.environ.get("PUPITRE_HOME"):
        return Path(given).absolute()
    return Path("/var/lib/pupitre") if os.geteuid() == 0 else user_folder() / ".local/share/pupitre"


def user_folder() -> Path:
    """The home folder of this user. Raises `SetupError` where there is none."""
    try:
        return Path.home()
    except RuntimeError:
        raise SetupError("This user has no home folder.", "Set PUPITRE_HOME and PUPITRE_IMAGE_STORE.") from None


def login_name(number: int) -> str:
    """The name of a user of this machine, or a word for one without a name, as containers have them."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def check_home(home: Path) -> None:
    """Raises `SetupError` when it is there and cannot be used."""
    try:
        found = home.stat()
    except FileNotFoundError:
        return  # whatever writes into it makes it
    except OSError as error:
        raise setup_error(error, "Set PUPITRE_HOME to a folder of your own.") from error
    if not stat.S_ISDIR(found.st_mode):
        raise SetupError(f"The state folder {home} is a file.", "Set PUPITRE_HOME to a folder of your own.")
    if os.access(home, os.R_OK | os.X_OK):
        return
    owner = found.st_uid
    if owner == os.geteuid():
        raise SetupError(f"The state folder {home} is closed to its owner.", f"Run: chmod 700 {home}")
    name = login_name(owner)
    raise SetupError(
        f"The state folder {home} belongs to {name}.",
        f"Run this as {name}, or set PUPITRE_HOME to a folder of your own.",
    )


def check_variables(settings: Collection[str]) -> None:
    """Raises `SetupError` for a variable that looks like a setting and is none."""
    for variable in os.environ:
        name = variable.removeprefix(PREFIX).lower()
        if variable.startswith(PREFIX) and variable not in OTHER_VARIABLES and name not in settings:
            raise SetupError(f"Environment: {unknown(name, settings, PREFIX)}", f"Correct it, or run: unset {variable}")


def unknown(name: str, settings: Collection[str], prefix: str = "") -> str:
    """A sentence that names the nearest setting there is."""
    shown = (lambda key: prefix + key.upper()) if prefix else str
    near = difflib.get_close_matches(name, settings, n=1)
    return f"there is no setting {shown(name)}." + (f" Do you mean {shown(near[0])}?" if near else "")


def read_file(home: Path) -> dict[str, Any]:
    """The settings of its file; none where there is no file. Raises `SetupError` that names the line."""
    path = home / FILE
    try:
        return tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise setup_error(error, "Make it a file that you may read, or move it away.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise SetupError(f"{path} is not UTF-8 text: line {line}.", "Save it as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise SetupError(f"{path} cannot be read as TOML: {error}.", "Correct it there.") from error
