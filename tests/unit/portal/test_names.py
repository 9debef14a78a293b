"""Names as people type them, and as pages show them: sign-in, REST paths, the audit log."""

from collections.abc import AsyncIterator
from importlib.resources import as_file, files
from pathlib import Path
from urllib.parse import quote

import pytest
from alembic import command

from pupitre.config import Settings
from pupitre.domain.people.access import Role
from pupitre.errors import Conflict
from pupitre.store.accounts import Accounts, SessionKind
from pupitre.store.admin import migrate
from pupitre.store.schema import DATABASES
from tests.rigs import databases
from tests.rigs.portal_site import PASSWORD, Site, open_site

pytestmark = pytest.mark.anyio
USERS = "/api/v1/users"
EVIL = "a\u202enimda"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path) as site:
        yield site


async def test_one_signs_in_however_the_name_is_typed(site: Site) -> None:
    async with site.as_user("admin") as admin, site.client() as client:
        new = {"name": "Ñandú.O’Brien@Example.org", "role": "student", "password": "a quite long one"}
        added = await admin.post(USERS, json=new | {"display_name": "Ñandú O’Brien"})
        assert added.status_code == 201, added.text
        name = added.json()["name"]
        assert name == "ñandú.o'brien@example.org"
        again = await admin.post(USERS, json=new | {"name": "ÑANDÚ.O'BRIEN@example.ORG"})
        assert (again.status_code, again.json()["detail"]) == (409, f"There is already a user named {name}.")
        for typed in (name, "Ñandú.O'Brien@Example.org", " N\u0303andu\u0301.o’brien@example.org "):
            signed_in = await client.post("/api/v1/sessions", json={"name": typed, "password": new["password"]})
            assert signed_in.status_code == 201, typed
        bearer = {"Authorization": f"Bearer {signed_in.json()['token']}"}
        page = await client.get("/account", headers=bearer)
        assert "Ñandú O’Brien" in page.text
        assert "You sign in as" in page.text


async def test_a_name_in_a_path_is_encoded_and_compared(site: Site) -> None:
    async with site.as_user("admin") as admin:
        new = {"name": "josé+1@example.org", "role": "student", "password": "a quite long one"}
        assert (await admin.post(USERS, json=new)).status_code == 201
        path = f"{USERS}/{quote('JOSÉ+1@example.org', safe='')}"
        changed = await admin.patch(path, json={"display_name": "José"})
        assert (changed.status_code, changed.json()["display_name"]) == (200, "José")
        assert (await admin.patch(path, json={"role": "teacher"})).json()["display_name"] == "José"
        assert (await admin.delete(path)).status_code == 204
        assert (await admin.delete(path)).status_code == 404
        found = (await admin.get("/api/v1/audit", params={"user": "ADMIN", "action": "user_added"})).json()["items"]
        assert [entry["subject"] for entry in found] == ["josé+1@example.org"]
        assert "josé+1@example.org" in (await admin.get("/admin/audit", params={"user": "Admin"})).text


async def test_a_new_name_to_be_shown_ends_no_sign_in(site: Site) -> None:
    async with site.as_user("admin") as admin, site.in_browser("student") as browser:
        assert (await admin.patch(f"{USERS}/student", json={"display_name": "Ana"})).status_code == 200
        assert "Ana" in (await browser.get("/")).text
        assert (await admin.patch(f"{USERS}/student", json={})).json()["display_name"] == "Ana"


async def test_an_invisible_character_is_refused_and_not_shown(site: Site) -> None:
    async with site.as_user("admin") as admin, site.client() as client:
        for body in ({"name": EVIL}, {"name": "ana", "display_name": EVIL}):
            refused = await admin.post(USERS, json={"role": "student", "password": "a quite long one", **body})
            assert refused.status_code == 422
            assert "Choose another." in refused.text
            assert "\u202e" not in refused.text
        missing = await admin.delete(f"{USERS}/{quote(EVIL)}")
        assert missing.status_code == 404
        assert "\u202e" not in missing.text
        client.headers["Origin"] = site.url
        answer = await client.post("/signin", data={"name": EVIL, "password": PASSWORD})
        assert answer.status_code == 401
        (entry, *_) = (await admin.get("/api/v1/audit", params={"action": "sign_in"})).json()["items"]
        assert entry["actor"] == "a\N{REPLACEMENT CHARACTER}nimda"


async def test_a_password_is_told_as_too_long(site: Site) -> None:
    async with site.as_user("admin") as admin, site.in_browser("student") as browser:
        long = "open sesame " * 50
        answer = await admin.post(USERS, json={"name": "ana", "role": "student", "password": long})
        assert (answer.status_code, answer.json()["detail"]) == (
            422,
            "A password has at most 512 characters. Choose a shorter one.",
        )
        page = await browser.post("/account/password", data={"current": PASSWORD, "new": long})
        assert page.status_code == 422
        assert "Choose a shorter one." in page.text
        common = await browser.post("/account/password", data={"current": PASSWORD, "new": "password12"})
        assert "Many people have this password" in common.text


async def test_accounts_of_before_keep_name_and_sign_ins(tmp_path: Path, each_database: str) -> None:
    """What stood in the tables of the first revision stays, on each database."""
    del each_database
    async with databases.database(tmp_path, "accounts") as database:
        url = database.url.render_as_string(hide_password=False)

    def back(connection: object) -> None:
        with as_file(files("pupitre.store") / "migrations") as folder:
            config = migrate._config(folder, "accounts")
            config.attributes.update(connection=connection, metadata=DATABASES["accounts"])
            command.downgrade(config, "0001")

    async with migrate._connected(url) as connection:
        await connection.run_sync(back)
        columns, row = "id, name, role, password_hash, created", "'u1', 'ana.b-c_1', 'teacher', 'h', 1"
        await connection.exec_driver_sql(f"INSERT INTO users ({columns}) VALUES ({row})")  # noqa: S608 - words of ours
        await connection.commit()
    users = migrate.users_of(Settings(home=tmp_path), "accounts")  # the next tests on this server need their grants
    assert migrate.upgrade("accounts", url, users)
    async with databases.database(tmp_path, "accounts") as database:
        accounts = Accounts(database)
        found = await accounts.user_named("Ana.B-C_1")
        assert found is not None
        user, password_hash = found
        assert (user.id, user.name, user.role, user.title, password_hash) == (
            "u1", "ana.b-c_1", Role.TEACHER, "ana.b-c_1", "h",
        )  # fmt: skip
        with pytest.raises(Conflict, match="already a user named"):
            await accounts.add_user(user, "h", now=1)
        await accounts.open_session("t" * 64, user.id, SessionKind.COOKIE, now=1, expires=10)
        session = await accounts.session("t" * 64, now=5)
        assert session is not None
        assert session.user == user
