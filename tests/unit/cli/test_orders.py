"""Orders, waiting and the audit log on the command line, against a real portal; a driver plays the cluster."""

import asyncio
import csv
import io
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pupitre.domain.command import Command, ConfigureHost, DestroyDesktop, Halt, Order, RetireHost
from pupitre.domain.host import HostState
from pupitre.domain.people.access import Role
from pupitre.store.accounts import SessionKind
from tests.rigs.portal_site import Site, open_site

pytestmark = pytest.mark.anyio


@dataclass
class Done:
    code: int
    out: str
    err: str


@dataclass
class Shell:
    site: Site
    token: str

    async def __call__(self, *arguments: str, local: bool = False) -> Done:
        """``local``: without a token, as on the portal's own machine."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PUPITRE_")}
        kept |= {"PUPITRE_HOME": str(self.site.settings.home), "NO_COLOR": "1"}
        kept |= {"PUPITRE_PORTAL_PORT": str(self.site.settings.portal_port)}
        kept |= {} if local else {"PUPITRE_TOKEN": self.token}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pupitre", *arguments,
            env=kept, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        return Done(process.returncode or 0, out.decode(), err.decode())

    @asynccontextmanager
    async def asked(self, *arguments: str) -> AsyncIterator[tuple[Command, "asyncio.Task[Done]"]]:
        """What was asked of the cluster, and the command line that waits for its outcome."""
        waiting = asyncio.create_task(self(*arguments))
        async with asyncio.timeout(30):
            coming = asyncio.create_task(self.site.endpoint.next_command())
            await asyncio.wait({waiting, coming}, return_when=asyncio.FIRST_COMPLETED)
            assert coming.done(), await waiting
        yield coming.result(), waiting


@pytest.fixture
async def pupitre(tmp_path: Path) -> AsyncIterator[Shell]:
    async with open_site(tmp_path) as site:
        await site.endpoint.host(label="Room 12")
        yield Shell(site, await site.session("admin", SessionKind.BEARER))


@pytest.mark.parametrize(
    ("arguments", "order", "said"),
    [
        (("host", "shut-down", "Room 12"), RetireHost("host-1", unregister=False), "Room 12 is shut down."),
        (
            ("host", "unregister", "host-1", "--at-once"),
            RetireHost("host-1", unregister=True, at_once=True),
            "host-1 is no longer part of the cluster.",
        ),
        (
            ("host", "configure", "host-1", "--label", "Room 7", "--no-edition", "--mac", ""),
            ConfigureHost("host-1", label="Room 7", edition=False, mac=""),
            "host-1 is changed.",
        ),
        (("cluster", "halt", "--hosts"), Halt(hosts=True), "The cluster and its hosts are halted."),
    ],
)
async def test_an_order_waits_for_its_outcome(
    pupitre: Shell, arguments: tuple[str, ...], order: Order, said: str
) -> None:
    async with pupitre.asked(*arguments) as (command, waiting):
        assert command.order == order
        await pupitre.site.endpoint.succeed(command)
        done = await waiting
    assert (done.code, done.out) == (0, f"{said}\n"), done.err


async def test_steps_are_told_and_fault_is_one_sentence(pupitre: Shell) -> None:
    """Each step is told and a fault is one sentence and exit code 1."""
    async with pupitre.asked("host", "boot", "host-1") as (command, waiting):
        # The command line shows steps from when its stream is open, which its first one tells.
        await pupitre.site.endpoint.host(state=HostState.DRAINING, reason="2 desktops are still there")
        await pupitre.site.endpoint.fail(command, "VM_SERVER_BOOTUP_ERROR", "host-1 has no MAC address.")
        done = await waiting
    assert done.code == 1
    assert done.err.splitlines()[-1] == "pupitre: host-1 has no MAC address."
    shown = json.loads((await pupitre("command", "show", command.id, "--json")).out)
    assert (shown["outcome"], shown["subject"]) == ("VM_SERVER_BOOTUP_ERROR", "host-1")
    assert "VM_SERVER_BOOTUP_ERROR" in (await pupitre("command", "list")).out
    waited = await pupitre("command", "wait", command.id)
    assert (waited.code, "no MAC address" in waited.err) == (1, True)


async def test_hosts_are_shown(pupitre: Shell) -> None:
    shown = await pupitre("host", "show", "Room 12")
    assert shown.code == 0, shown.err
    fields = dict(line.split(maxsplit=1) for line in shown.out.splitlines() if line.startswith(("Host", "Label", "St")))
    assert fields == {"Host": "host-1", "Label": "Room 12", "State": "ready"}
    whole = json.loads((await pupitre("host", "show", "host-1", "--json")).out)
    assert (whole["name"], whole["desktops"], whole["stale"]) == ("host-1", 0, False)
    assert "Room 12" in (await pupitre("host", "list")).out
    missing = await pupitre("host", "show", "nowhere")
    assert (missing.code, missing.err) == (1, "pupitre: There is no host 'nowhere'. There are: Room 12.\n")
    nothing = await pupitre("host", "configure", "host-1")
    assert (nothing.code, "Nothing is to be changed" in nothing.err) == (1, True)


async def test_the_audit_log_is_exported_whole(pupitre: Shell) -> None:
    client = pupitre.site.as_user("admin")
    async with client as admin, pupitre.site.client() as nobody:
        for _ in range(205):  # more than a page
            await admin.post("/api/v1/cluster/halt", json={})
        await nobody.post("/api/v1/sessions", json={"name": "=cmd|' /C calc'!A0", "password": "x"})
    whole = json.loads((await pupitre("audit", "--json")).out)
    assert (len(whole["items"]), whole["next"]) == (206, None)
    assert len({entry["id"] for entry in whole["items"]}) == 206
    rows = list(csv.DictReader(io.StringIO((await pupitre("audit", "--csv", "--action", "sign_in")).out)))
    assert [(row["actor"], row["outcome"]) for row in rows] == [("'=cmd|' /C calc'!A0", "refused")]
    assert len((await pupitre("audit", "--user", "admin", "--limit", "3", "--since", "1h")).out.splitlines()) == 4
    assert json.loads((await pupitre("audit", "--until", "2020-01-01", "--json")).out)["items"] == []
    wrong = await pupitre("audit", "--since", "yesterday")
    assert (wrong.code, "is no moment" in wrong.err) == (1, True)


async def test_account_changes_by_cli_are_audited_and_end_sessions(
    pupitre: Shell,
) -> None:
    """What is done to accounts on this machine is in the audit log and ends what is open."""
    site = pupitre.site
    desktop = await site.running("student")
    async with site.as_user("student") as student, site.as_user("other") as other:
        for client in (student, other):
            assert (await client.get("/api/v1/status")).status_code == 200
        changed = await pupitre("user", "role", "other", "teacher", "--json", local=True)
        assert json.loads(changed.out)["role"] == Role.TEACHER
        assert (await pupitre("user", "remove", "student", local=True)).code == 0
        async with asyncio.timeout(10):
            for client in (student, other):
                while (await client.get("/api/v1/status")).status_code != 401:
                    pass
    stop = await site.endpoint.next_command()
    assert stop.order == DestroyDesktop(desktop.id)
    listed = await pupitre("audit", "--json", "--as", "admin", local=True)
    entries = [entry for entry in json.loads(listed.out)["items"] if entry["origin"] == "this machine"]
    assert [(entry["action"], entry["subject"]) for entry in entries] == [
        ("sign_in", "admin"),
        ("user_removed", "student"),
        ("role_changed", "other"),
    ]
