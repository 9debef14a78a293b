"""Where the demonstration accounts are written down, and how to read them back."""

import json
from pathlib import Path

from pupitre.config import Settings


def accounts_file(settings: Settings) -> Path:
    """Mode 600."""
    return settings.home / "accounts.json"


def read_accounts(settings: Settings) -> list[dict[str, str]]:
    """``[{"name", "role", "password"}]``; empty when the file is not there."""
    try:
        entries: list[dict[str, str]] = json.loads(accounts_file(settings).read_text())
    except FileNotFoundError:
        return []
    return entries
