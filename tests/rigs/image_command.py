"""``pupitre image`` as people use it, on a store of the test's own."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROGRAM = [sys.executable, "-m", "pupitre", "image"]


def environment(home: Path, **more: str) -> dict[str, str]:
    return os.environ | {"PUPITRE_HOME": str(home), "PUPITRE_IMAGE_STORE": str(home / "images")} | more


def said(
    home: Path, *arguments: str | bytes | Path, before: Sequence[str] = (), **more: str
) -> "subprocess.CompletedProcess[str]":
    """``before`` is put in front of the command: another program that runs it."""
    return subprocess.run(
        [*before, *PROGRAM, *arguments],
        env=environment(home, **more),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def image(
    home: Path, *arguments: str | bytes | Path, before: Sequence[str] = (), **more: str
) -> tuple[int, dict[str, Any]]:
    """``pupitre image … --json``: exit code and answer."""
    done = said(home, *arguments, "--json", before=before, **more)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout or "{}")


def reason(answer: tuple[int, dict[str, Any]]) -> str:
    """Why the command failed: one sentence or two, on one line. What the machine lacks has an exit code of its own."""
    code, told = answer
    assert code == (2 if told["error"]["code"] == "setup_error" else 1), told
    sentence: str = told["error"]["reason"]
    assert "\n" not in sentence
    assert len(sentence) < 600
    return sentence


def create(path: Path, kind: str = "raw", *options: str | Path, size: str = "4M") -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, *options, path, size], check=True)
    return path
