"""File of the demonstration accounts."""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pupitre.config import Settings
from pupitre.errors import SetupError

_ACCOUNTS = TypeAdapter(list[dict[str, str]])


def accounts_file(settings: Settings) -> Path:
    """Mode 600."""
    return settings.home / "accounts.json"


def read_accounts(settings: Settings) -> list[dict[str, str]]:
    """``[{"name", "role", "password"}]``; empty when the file is not there. Raises `SetupError` for a damaged one."""
    path = accounts_file(settings)
    try:
        return _ACCOUNTS.validate_json(path.read_bytes())
    except FileNotFoundError:
        return []
    except ValidationError as error:
        raise SetupError(
            f"{path} is damaged.", "Move it away; set new passwords with: pupitre user password NAME"
        ) from error
