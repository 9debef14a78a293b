"""A private Pupitre to measure: `pupitre up` in a folder of its own, gone afterwards."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from pupitre.errors import SetupError
from pupitre.up.processes.ports import free_port

STOP_LIMIT = 60.0


@dataclass(frozen=True, slots=True)
class Measured:
    """A running instance. ``passwords`` by name of the demonstration account."""

    url: str
    home: Path
    environment: dict[str, str]
    passwords: dict[str, str]
    process: psutil.Process

    def family(self) -> list[psutil.Process]:
        """The supervisor and what it started."""
        return [self.process, *self.process.children(recursive=True)]

    def names(self) -> dict[int, str]:
        """The names of the supervisor's children, by process id."""
        record = json.loads((self.home / "run/processes.json").read_text())
        return {process["pid"]: process["name"] for process in record["processes"]}


@contextmanager
def running(prepare: Callable[[dict[str, str]], None] = lambda _: None, **settings: str) -> Iterator[Measured]:
    """Started and ready; stopped and removed at the end. Raises `SetupError`.

    ``prepare`` is given the environment before anything starts.
    """
    with tempfile.TemporaryDirectory(prefix="pupitre-bench-") as folder:
        home = Path(folder) / "home"
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PUPITRE_")}
        chosen = {
            "home": str(home),
            "portal_port": str(free_port()),
            "demo_images": "false",
            "min_command_interval": "0",
            **settings,
        }
        environment = kept | {f"PUPITRE_{key.upper()}": value for key, value in chosen.items()}
        if "PUPITRE_IMAGE_STORE" in os.environ:
            environment["PUPITRE_IMAGE_STORE"] = os.environ["PUPITRE_IMAGE_STORE"]
        _ensure_tiny(environment)
        prepare(environment)
        log = Path(folder) / "up.log"
        with log.open("wb") as written:
            up = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "--", sys.executable, "-m", "pupitre", "up", "--json"],
                env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=written,
            )  # fmt: skip
        try:
            yield _ready(up, home, environment, log)
        finally:
            up.terminate()
            try:
                up.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                up.kill()
                up.wait()


def _ready(up: subprocess.Popen[bytes], home: Path, environment: dict[str, str], log: Path) -> Measured:
    assert up.stdout
    told = up.stdout.readline()
    if not told:
        raise SetupError(f"The instance to be measured did not start:\n{log.read_text()[-2000:]}", "")
    accounts = json.loads((home / "accounts.json").read_text())
    passwords = {account["name"]: account["password"] for account in accounts}
    return Measured(json.loads(told)["url"], home, environment, passwords, psutil.Process(up.pid))


def _ensure_tiny(environment: dict[str, str]) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "pupitre", "image", "build", "tiny"], env=environment, stdout=sys.stderr, check=False
    )
    if built.returncode:
        raise SetupError("The image tiny could not be built.", "Try it alone: pupitre image build tiny")
