"""Folders that other users of this machine can reach."""

import tempfile
from pathlib import Path


def let_through(folder: Path) -> None:
    """Let every user into ``folder``, which is a test's own, and through what pytest keeps closed above it."""
    for path in (folder, *folder.parents):
        if path == Path(tempfile.gettempdir()) or path.is_mount():
            return
        path.chmod(path.stat().st_mode | 0o011)
