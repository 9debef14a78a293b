"""`pupitre up --hosts 3`: hosts leave and come back while desktops run on the others."""

import time
from pathlib import Path
from typing import Any

import pytest

from pupitre.images.store import ImageStore
from tests.rigs.rest_client import Person, Serial, emulators, overlay, person
from tests.rigs.stack import Stack

GRACE = 90.0
"""Seconds that a guest may take; who is gone long before has shut down by itself."""


def hosts(admin: Person) -> dict[str, dict[str, Any]]:
    return {host["name"]: host for host in admin.http.get("/hosts").json()["items"]}


def done(admin: Person, method: str, path: str, **body: Any) -> None:
    ended = admin.outcome(admin.order(method, path, json=body)["command"], 120)
    assert ended["state"] == "succeeded", ended


@pytest.mark.xdist_group("stack")
@pytest.mark.guest
def test_host_leaves_and_returns_while_others_run(tmp_path: Path, images: ImageStore) -> None:
    """Hosts leave and come back while desktops run on the others."""
    stack = Stack(tmp_path / "home", hosts="3", drain_notice="3", shutdown_grace=str(GRACE)).start()
    try:
        with person(stack.url, "admin", stack.password("admin")) as admin:
            seen = hosts(admin)
            assert {name: host["state"] for name, host in seen.items()} == dict.fromkeys(
                ("host-1", "host-2", "host-3"), "ready"
            )
            machine = seen["host-1"]["facts"]["memory_mib"]
            assert len({host["mac"] for host in seen.values()}) == 3
            assert {host["facts"]["memory_mib"] for host in seen.values()} == {machine}

            there = {
                admin.http.get(f"/desktops/{desktop}").json()["host"]: desktop for desktop in map(_start, [admin] * 3)
            }
            assert there.keys() == seen.keys()
            with Serial(stack.home, there["host-2"], "host-2") as line:
                line.wait_for_shell()
            _drain(stack, admin, there)
            _boot_up(stack, admin)
            done(admin, "PATCH", "/hosts/host-2", label="Room 2")
            assert hosts(admin)["host-2"]["label"] == "Room 2"
            _unregister_and_register(stack, admin, there["host-3"])
            assert emulators(there["host-1"]), "nobody touched this one"
    finally:
        stack.stop()


def _start(admin: Person) -> str:
    return admin.start()


def _drain(stack: Stack, admin: Person, there: dict[str, str]) -> None:
    """Orderly: the guest shuts itself down, then its host; nobody else notices."""
    leaving = there["host-2"]
    begun = time.monotonic()
    done(admin, "POST", "/hosts/host-2/retire", unregister=False, at_once=False)
    assert 3 <= time.monotonic() - begun < GRACE / 2
    assert not emulators(leaving)
    assert not overlay(stack.home, leaving, "host-2").exists()
    stack.wait_until("its process rests", lambda: stack.processes()["host-2"]["state"] == "resting")
    assert "host-2 has done what it was told" in stack.log()
    stack.wait_until("the website knows", lambda: hosts(admin)["host-2"]["state"] == "shut_down")
    for host in ("host-1", "host-3"):
        assert admin.http.get(f"/desktops/{there[host]}").json()["state"] == "running"
        assert len(emulators(there[host])) == 1


def _boot_up(stack: Stack, admin: Person) -> None:
    """By a packet to the network card that `up` made up for it."""
    done(admin, "POST", "/hosts/host-2/boot")
    stack.wait_until("it is ready", lambda: hosts(admin)["host-2"]["state"] == "ready")
    assert "host-2 is woken" in stack.log()
    desktop = admin.start()  # the emptiest host takes it
    assert admin.http.get(f"/desktops/{desktop}").json()["host"] == "host-2"


def _unregister_and_register(stack: Stack, admin: Person, desktop: str) -> None:
    before = hosts(admin)["host-3"]
    done(admin, "POST", "/hosts/host-3/retire", unregister=True, at_once=True)
    stack.wait_until("the website knows", lambda: "host-3" not in hosts(admin))
    assert not emulators(desktop)
    assert stack.processes()["host-3"]["state"] == "ready"
    done(admin, "POST", "/hosts", **{key: before[key] for key in ("name", "address", "port", "mac")})
    stack.wait_until("it is ready", lambda: hosts(admin).get("host-3", {}).get("state") == "ready")
