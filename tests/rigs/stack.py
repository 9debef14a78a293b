"""A private Pupitre: `pupitre up` with a home, ports and accounts of its own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import psutil

from pupitre.net.ops_client import ask
from pupitre.up.processes.ports import free_port

START_LIMIT = 180.0
"""Seconds for a start on a busy machine."""
STOP_LIMIT = 60.0


class Stack:
    """Started by `start`; `stop` checks that nothing is left of it."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PUPITRE_")},
            "PUPITRE_HOME": str(home),
            "PUPITRE_PORTAL_PORT": str(self.port),
            "PUPITRE_DEMO_IMAGES": "false",
            "PUPITRE_MIN_COMMAND_INTERVAL": "0.05",
            **{f"PUPITRE_{key.upper()}": value for key, value in settings.items()},
        }
        home.parent.mkdir(parents=True, exist_ok=True)
        self._log = home.with_name(home.name + ".log")
        self._began = 0
        self.process: subprocess.Popen[bytes] | None = None

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def start(self) -> "Stack":
        """Return when everything is ready."""
        self._began = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pupitre", "up"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.wait_until("everything is ready", self.is_ready, START_LIMIT)
        except BaseException:
            self.kill()  # nobody else would: what did not start has no end either
            raise
        return self

    def is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"`pupitre up` ended with {self.process.returncode}:\n{self.log()[-4000:]}")
        return "Ready after" in self.log()[self._began :] and self._answers()

    def _answers(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/healthz", timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False

    def ask(self, name: str, route: str) -> httpx2.Response:
        """What the process says of itself on its own socket."""
        return ask(Path(self.processes()[name]["ops"]), route)

    def wait_until(self, what: str, condition: Any, seconds: float = 60) -> None:
        """Look until ``condition()`` is true; for what no event tells a test."""
        end = time.monotonic() + seconds
        pause = threading.Event()
        while not condition():
            assert time.monotonic() < end, f"not within {seconds} s: {what}\n{self.log()[-4000:]}"
            pause.wait(0.05)

    def password(self, name: str) -> str:
        accounts = json.loads((self.home / "accounts.json").read_text())
        return next(str(account["password"]) for account in accounts if account["name"] == name)

    def processes(self) -> dict[str, dict[str, Any]]:
        """The supervisor's record of its children, by name."""
        record = json.loads((self.home / "run/processes.json").read_text())
        return {entry["name"]: entry for entry in record["processes"]}

    def pid(self, name: str) -> int:
        return int(self.processes()[name]["pid"])

    def pupitre(self, *arguments: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run the command line against this instance."""
        return subprocess.run(
            [sys.executable, "-m", "pupitre", *arguments],
            env=self.environment, capture_output=True, text=True, check=check, stdin=subprocess.DEVNULL,
            timeout=timeout,
        )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL to the supervisor, as a crash of everything but the guests."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM, and then: no process, mount, socket or overlay of this home is left."""
        assert self.process is not None
        family = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(STOP_LIMIT)
        assert code == 0, f"`pupitre up` ended with {code}:\n{self.log()[-4000:]}"
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive, alive
        left = self.leftovers()
        assert not left, left

    def leftovers(self) -> list[str]:
        """Whatever of this instance is still there."""
        found = [f"overlay {path}" for path in self.home.glob("hosts/*/overlays/*.qcow2")]
        found += [f"socket {path}" for path in self.home.rglob("*") if path.is_socket()]
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        found += [f"mount {line}" for line in mounts if str(self.home) in line]
        for process in psutil.process_iter(["cmdline", "environ"]):
            if process.pid != os.getpid() and (process.info["environ"] or {}).get("PUPITRE_HOME") == str(self.home):
                found.append(f"process {process.pid} {process.info['cmdline']}")
        return found
