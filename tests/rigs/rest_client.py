"""What the tests of the whole program share: a person's REST client, and a look at the host's side."""

import json
import os
import re
import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil

FINAL = {"succeeded", "failed", "timed_out", "cancelled"}


class Person:
    """Someone signed in by REST. Waiting is done on server-sent events."""

    def __init__(self, url: str, name: str, password: str) -> None:
        self.url = url
        self.http = httpx2.Client(base_url=f"{url}/api/v1", timeout=60)
        answer = self.http.post("/sessions", json={"name": name, "password": password})
        assert answer.status_code == 201, answer.text
        self.token = answer.json()["token"]
        self.http.headers["authorization"] = f"Bearer {self.token}"

    def close(self) -> None:
        self.http.close()

    def events(self, seconds: float) -> Generator[tuple[str, dict[str, Any]]]:
        """Events as they come, what there is already first. Fails after ``seconds``."""
        end = time.monotonic() + seconds
        with self.http.stream("GET", "/events", timeout=20) as stream:
            assert stream.status_code == 200
            kind = ""
            for line in stream.iter_lines():
                assert time.monotonic() < end, f"nothing came of it within {seconds} s"
                if line.startswith("event:"):
                    kind = line[6:].strip()
                elif line.startswith("data:") and kind:
                    yield kind, json.loads(line[5:])

    def outcome(self, command: str, seconds: float = 60) -> dict[str, Any]:
        """The command once it has its outcome."""
        for kind, data in self.events(seconds):
            if kind == "ready":  # it may have ended before the events began
                kind, data = "command", self.http.get(f"/commands/{command}").json()
            if kind == "command" and data["id"] == command and data["state"] in FINAL:
                return data
        raise AssertionError("the event stream ended")

    def desktop_in(self, desktop: str, state: str, seconds: float = 60) -> dict[str, Any]:
        for kind, data in self.events(seconds):
            if kind == "desktop" and data["id"] == desktop and data["state"] == state:
                return data
        raise AssertionError("the event stream ended")

    def order(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        """Send a command, heeding the interval between two commands, and return the answer."""
        while (answer := self.http.request(method, path, **arguments)).status_code == 429:
            assert answer.json()["code"] == "too_early", answer.text
            threading.Event().wait(float(answer.headers["retry-after"]))
        assert answer.status_code in {202, 204}, answer.text
        body: dict[str, Any] = answer.json() if answer.content else {}
        return body

    def start(self, image: str = "tiny") -> str:
        """The id of a desktop that runs."""
        answer = self.order("POST", "/desktops", json={"image": image})
        ended = self.outcome(answer["command"])
        assert ended["state"] == "succeeded", ended
        return str(ended["desktop"])

    def stop(self, desktop: str) -> None:
        """Also puts away one that failed before it came to be, which takes no command."""
        if answer := self.order("DELETE", f"/desktops/{desktop}"):
            ended = self.outcome(answer["command"])
            assert ended["state"] == "succeeded", ended

    def stop_all(self) -> None:
        for desktop in self.http.get("/desktops").json()["items"]:
            self.stop(desktop["id"])

    def ticket(self, desktop: str) -> tuple[str, str]:
        """The WebSocket's URL and a fresh ticket for it."""
        answer = self.http.post(f"/desktops/{desktop}/console")
        assert answer.status_code == 200, answer.text
        return answer.json()["url"], answer.json()["ticket"]


class Serial:
    """A desktop's serial line: the guest's own word, past screen and keyboard."""

    def __init__(self, home: Path, desktop: str, host: str = "host-1") -> None:
        folder = os.open(home / "hosts" / host / "serial", os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(f"/proc/self/fd/{folder}/{desktop}")  # the path itself may be too long
        finally:
            os.close(folder)
        self._heard = ""

    def __enter__(self) -> "Serial":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def say(self, text: str) -> None:
        self._socket.sendall(text.encode())

    def hear(self, pattern: str, seconds: float = 60) -> re.Match[str]:
        """Read on until ``pattern`` has been said."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self._heard)):
            left = end - time.monotonic()
            assert left > 0, f"waited for {pattern!r}, heard {self._heard[-2000:]!r}"
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(4096)
            except TimeoutError:
                continue
            assert data, f"the line is closed; heard {self._heard[-2000:]!r}"
            self._heard += data.decode(errors="replace")
        self._heard = self._heard[found.end() :]
        return found

    def wait_for_shell(self, seconds: float = 90) -> None:
        """Return when the guest's shell answers."""
        end = time.monotonic() + seconds
        while True:
            self.say("echo up-$((40+2))\n")
            try:
                self.hear(r"up-42", min(2.0, max(0.1, end - time.monotonic())))
                return
            except AssertionError:
                assert time.monotonic() < end, f"no shell within {seconds} s: {self._heard[-2000:]!r}"


def emulators(desktop: str) -> list[psutil.Process]:
    """The QEMU processes of a desktop."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        name, line = process.info["name"] or "", process.info["cmdline"] or []
        if name.startswith("qemu-system") and any(desktop in word for word in line):
            found.append(process)
    return found


def overlay(home: Path, desktop: str, host: str = "host-1") -> Path:
    return home / "hosts" / host / "overlays" / f"{desktop}.qcow2"


@contextmanager
def person(url: str, name: str, password: str) -> Iterator[Person]:
    """Someone who leaves nothing running."""
    someone = Person(url, name, password)
    try:
        yield someone
    finally:
        someone.stop_all()
        someone.close()
