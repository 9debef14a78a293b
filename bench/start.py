"""``python -m bench start``: how much of a desktop's start is ours.

Taken in turns, in one run: libvirt alone (the floor), a REST request until the live
events say that the desktop runs (ours), and the difference of the two; then a click in
Chromium until the screen shows something.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from bench.instance import Measured, running
from pupitre.errors import CommandError, SetupError

IMAGE = "tiny"
FINAL = {"succeeded", "failed", "timed_out", "cancelled"}
CHROMIUM_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
SHOWS_SOMETHING = """() => {
    const canvas = document.querySelector("#screen canvas");
    if (!canvas || !canvas.width || document.querySelector("main").dataset.state !== "connected") return false;
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    for (let i = 0; i < pixels.length; i += 4) if (pixels[i] + pixels[i + 1] + pixels[i + 2] > 96) return true;
    return false;
}"""

Figures = dict[str, float]


def measure(count: int) -> dict[str, Figures]:
    """``floor_ms``, ``ours_ms``, ``overhead_ms``, ``click_to_canvas_ms``. Raises `PupitreError`."""
    floor: list[float] = []
    ours: list[float] = []
    with running(start_limit="4") as instance, _floor(instance) as raw, _Person(instance) as person:
        for number in range(-1, count):  # the first of each warms what only the first one pays for
            pair = raw(), person.start_and_stop()
            if number >= 0:
                floor.append(pair[0])
                ours.append(pair[1])
            print(f"  start {number + 1:2}: libvirt {pair[0]:7.1f} ms, ours {pair[1]:7.1f} ms", file=sys.stderr)
        clicks = list(_clicks(instance, count))
    return {
        "floor_ms": _figures(floor),
        "ours_ms": _figures(ours),
        "overhead_ms": _figures([mine - theirs for mine, theirs in zip(ours, floor, strict=True)]),
        "click_to_canvas_ms": _figures(clicks),
    }


def _figures(values: list[float]) -> Figures:
    if len(values) < 2:
        return {"p50": round(values[0], 1), "p95": round(values[0], 1)}
    percentiles = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": round(percentiles[49], 1), "p95": round(percentiles[94], 1)}


@contextmanager
def _floor(instance: Measured) -> Iterator[Any]:
    """A function that starts and stops one guest by libvirt alone and gives the milliseconds."""
    with tempfile.TemporaryDirectory(prefix="pupitre-floor-") as home:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.floor", IMAGE],
            env=instance.environment | {"PUPITRE_HOME": home},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdin
        assert process.stdout
        stdin, stdout = process.stdin, process.stdout

        def start() -> float:
            stdin.write("\n")
            stdin.flush()
            return float(stdout.readline())

        try:
            if stdout.readline().strip() != "ready":
                raise SetupError("libvirt alone could not be opened.", "`pupitre doctor` says what is missing.")
            yield start
        finally:
            stdin.close()
            process.wait()
            stdout.close()


class _Person:
    """An administrator with a REST client and an open stream of live events."""

    def __init__(self, instance: Measured) -> None:
        self._http = httpx2.Client(base_url=f"{instance.url}/api/v1", timeout=120)
        sign_in = {"name": "admin", "password": instance.passwords["admin"]}
        token = self._http.post("/sessions", json=sign_in).raise_for_status().json()["token"]
        self._http.headers["Authorization"] = f"Bearer {token}"
        self._stream = self._http.stream("GET", "/events")
        self._states: dict[tuple[str, str], str] = {}

    def __enter__(self) -> "_Person":
        self._events = _read(self._stream.__enter__().raise_for_status().iter_lines())
        return self

    def __exit__(self, *error: Any) -> None:
        self._stream.__exit__(*error)
        self._http.close()

    def start_and_stop(self) -> float:
        """Milliseconds from the request to the event that the desktop runs."""
        begun = time.perf_counter()
        asked = self._http.post("/desktops", json={"image": IMAGE}).raise_for_status().json()
        self._until("desktop", asked["desktop"], {"running", "failed"})
        took = time.perf_counter() - begun
        self._until("command", asked["command"], FINAL)
        ended = self._http.delete(f"/desktops/{asked['desktop']}").raise_for_status().json()
        self._until("command", ended["command"], FINAL)
        return round(took * 1000, 2)

    def _until(self, kind: str, key: str, states: set[str]) -> None:
        """Read on until ``kind`` ``key`` is in one of ``states``, unless it was already said to be."""
        while self._states.get((kind, key)) not in states:
            name, data = next(self._events)
            if "state" in data:
                self._states[name, data["id"] if "id" in data else data["name"]] = data["state"]
        if self._states[kind, key] not in {"running", "succeeded"}:
            raise CommandError(f"The {kind} {key} is {self._states[kind, key]}. See: pupitre command list")


def _read(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and data of server-sent events. Raises `CommandError` at their end."""
    name = ""
    for line in lines:
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            yield name, json.loads(line[5:])
    raise CommandError("The stream of live events ended.")


def _clicks(instance: Measured, count: int) -> Iterator[float]:
    """Milliseconds from the click on Start to the first picture on noVNC's canvas."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise SetupError("Playwright is not installed.", "Run: scripts/setup bench") from error
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("PUPITRE_CHROMIUM", "/usr/bin/chromium"), args=list(CHROMIUM_FLAGS)
        )
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"{instance.url}/signin")
        page.fill("input[name=name]", "teacher")
        page.fill("input[name=password]", instance.passwords["teacher"])
        page.click("main button[type=submit], main button")
        for number in range(count):
            page.goto(instance.url)
            page.wait_for_selector(f"#start-{IMAGE}:enabled")
            begun = time.perf_counter()
            page.click(f"#start-{IMAGE}")
            page.click('[data-desktop][data-state="running"] a.btn-primary')
            page.wait_for_function(SHOWS_SOMETHING, polling="raf")
            took = (time.perf_counter() - begun) * 1000
            print(f"  click {number + 1:2}: {took:7.0f} ms", file=sys.stderr)
            yield took
            page.goto(instance.url)
            page.click("[data-stop]")
            page.click("dialog[open] .btn-danger")
            page.wait_for_selector("[data-desktop]", state="detached")
        browser.close()
