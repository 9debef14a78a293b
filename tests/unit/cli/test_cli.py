"""The command line as a person uses it: words, JSON, exit codes. Each test has a home of its own."""

import fcntl
import json
import os
import socket
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pupitre.cli.root import COMMANDS
from pupitre.portal.identity.passwords import verify
from pupitre.up.processes.ports import free_port
from tests.rigs.other_users import let_through


class Shell:
    """Runs ``pupitre`` with a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PUPITRE_")}
        self.environment = {**kept, "PUPITRE_HOME": str(home), "PUPITRE_IMAGE_STORE": str(home / "images")}

    def __call__(self, *arguments: str, given: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pupitre", *arguments],
            env=self.environment | {f"PUPITRE_{key.upper()}": value for key, value in settings.items()},
            input=given, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip


@pytest.fixture
def pupitre(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "home")


def test_help_names_every_command_without_importing_any(pupitre: Shell) -> None:
    code = "import sys\ntry:\n    from pupitre.cli import main; main()\nfinally:\n    print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True, env=pupitre.environment
    )
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert not {"sqlalchemy", "fastapi", "nats", "libvirt", "uvicorn"} & set(done.stdout.split())


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help(pupitre: Shell, name: str) -> None:
    done = pupitre(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "--install-completion" not in done.stdout


def test_databases_are_made_once_and_closed_to_others(pupitre: Shell) -> None:
    made = json.loads(pupitre("db", "create", "--json").stdout)
    assert sorted(made["changed"]) == ["accounts", "cluster", "commands", "status"]
    assert json.loads(pupitre("db", "upgrade", "--json").stdout)["changed"] == []
    assert stat.S_IMODE(pupitre.home.stat().st_mode) == 0o700
    assert stat.S_IMODE((pupitre.home / "db/accounts.sqlite").stat().st_mode) == 0o600


def test_a_user_from_beginning_to_end(pupitre: Shell) -> None:
    pupitre("db", "create")
    added = json.loads(pupitre("user", "add", "ana", "--role", "teacher", "--json").stdout)
    assert (added["name"], added["role"]) == ("ana", "teacher")
    assert len(added["password"]) >= 10
    again = pupitre("user", "add", "ana")
    assert (again.returncode, again.stderr) == (1, "pupitre: There is already a user named ana.\n")
    assert json.loads(pupitre("user", "token", "ana", "--json").stdout)["token"]
    done = pupitre("user", "password", "ana", "--password-stdin", "--json", given="a quite long one\n")
    assert "password" not in json.loads(done.stdout)
    assert pupitre("user", "password", "ana", "--password-stdin", given="short\n").returncode == 1
    assert [user["name"] for user in json.loads(pupitre("user", "list", "--json").stdout)["items"]] == ["ana"]
    assert pupitre("user", "remove", "ana").returncode == 0
    missing = pupitre("user", "token", "ana")
    assert missing.returncode == 1
    assert missing.stderr == "pupitre: There is no user named ana. See: pupitre user list\n"


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "a\u202eb", "a\x1b[31m", "a" * 129])
def test_a_name_that_cannot_be_is_refused_in_words(pupitre: Shell, name: str) -> None:
    pupitre("db", "create")
    done = pupitre("user", "add", "--", name)
    assert done.returncode == 1
    assert "Choose another." in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.replace("\n", "").isprintable()


def test_a_name_is_found_however_it_is_typed(pupitre: Shell) -> None:
    pupitre("db", "create")
    added = pupitre("user", "add", "Ana@Example.org", "--display-name", "Ana Díaz", "--json")
    assert json.loads(added.stdout)["name"] == "ana@example.org"
    again = pupitre("user", "add", "ANA@example.org")
    assert (again.returncode, again.stderr) == (1, "pupitre: There is already a user named ana@example.org.\n")
    assert json.loads(pupitre("user", "display-name", "ana@EXAMPLE.org", "", "--json").stdout)["display_name"] == ""
    removed = pupitre("user", "remove", "Ana@example.org")
    assert removed.stdout == "Removed ana@example.org.\n"
    missing = pupitre("user", "remove", "a\u202eb")
    assert missing.stderr == "pupitre: There is no user named a\N{REPLACEMENT CHARACTER}b. See: pupitre user list\n"


def test_a_password_from_a_pipe_is_a_line_of_utf8(pupitre: Shell) -> None:
    pupitre("db", "create")
    for given, said in (
        (b"contrase\xf1a larga\n", b"is not UTF-8 text. Send it as UTF-8."),
        (b"\r\n", b"no password on standard input"),
        (b"password12\r\n", b"Many people have this password"),
        (b"          \n", b"repeats fewer than 5 characters"),
        (b"0123456789abc" * 50 + b"\n", b"at most 512 characters. Choose a shorter one."),
        (b"a quite long one\r\n", b""),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "pupitre", "user", "add", "ana", "--password-stdin"],
            env=pupitre.environment, input=given, capture_output=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == (1 if said else 0), done.stderr
        assert said in done.stderr
        assert b"Traceback" not in done.stderr
    with sqlite3.connect(pupitre.home / "db/accounts.sqlite") as database:
        (made,) = database.execute("select password_hash from users").fetchone()
    assert verify("a quite long one", made)


def test_a_wrong_setting_is_named_with_its_mend(pupitre: Shell) -> None:
    done = pupitre("up", portal_port="many")
    assert done.returncode == 2
    assert "Setting portal_port" in done.stderr
    assert "PUPITRE_PORTAL_PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_named_with_the_setting(pupitre: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = pupitre("up", portal_port=str(port))
    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in done.stderr
    assert "PUPITRE_PORTAL_PORT=" in done.stderr


def test_a_second_instance_is_told_where_the_first_is(pupitre: Shell) -> None:
    run = pupitre.home / "run"
    run.mkdir(parents=True)
    with (run / "up.lock").open("w") as lock:
        lock.write("4242 http://127.0.0.1:8080\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = pupitre("up")
    assert done.returncode == 1
    assert "process 4242, at http://127.0.0.1:8080" in done.stderr


def test_without_a_portal_the_command_line_says_how_to_start_one(pupitre: Shell) -> None:
    done = pupitre("desktop", "list", token="x", portal_port=str(free_port()))
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert "pupitre up" in done.stderr


def test_status_without_an_instance(pupitre: Shell) -> None:
    done = pupitre("status", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["running"] is False


def test_the_doctor_says_what_it_found_and_what_mends_it(pupitre: Shell) -> None:
    report = json.loads(pupitre("doctor", "--json", portal_port="0").stdout)
    checks = {finding["check"]: finding for finding in report["findings"]}
    assert checks["kvm"]["found"]
    assert checks["images"]["remedy"] == "pupitre image build tiny"
    assert all(finding["remedy"] for finding in report["findings"] if not finding["well"] and not finding["minor"])


def test_the_doctor_finds_an_open_home_and_a_missing_database(pupitre: Shell) -> None:
    pupitre("db", "create")
    pupitre.home.chmod(0o755)
    (pupitre.home / "db/status.sqlite").unlink()
    done = pupitre("doctor", portal_port="0")
    assert done.returncode == 1
    assert f"→ chmod 700 {pupitre.home}" in done.stdout
    assert "✗ database status: is not there\n    → pupitre db create" in done.stdout


def test_version_is_printed(pupitre: Shell) -> None:
    assert pupitre("--version").stdout == "pupitre 0.1.0\n"


@pytest.mark.parametrize("words", [(), ("user",), ("user", "add"), ("status",), ("image", "import")])
def test_short_option_for_help(pupitre: Shell, words: tuple[str, ...]) -> None:
    assert pupitre(*words, "-h").stdout == pupitre(*words, "--help").stdout != ""


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"portl_port": "9000"}, "there is no setting PUPITRE_PORTL_PORT. Do you mean PUPITRE_PORTAL_PORT?"),
        ({"heartbeat": "inf"}, "Setting heartbeat: Input should be a finite number."),
        ({"command_timeouts": "{"}, "command_timeouts"),
    ],
)
def test_unusable_variable_is_named(pupitre: Shell, variables: dict[str, str], sentence: str) -> None:
    ended = pupitre("status", **variables)
    assert ended.returncode == 2
    assert sentence in ended.stderr


def test_unknown_setting_in_the_file_is_named(pupitre: Shell) -> None:
    pupitre.home.mkdir()
    (pupitre.home / "pupitre.toml").write_text("sesion_hours = 3\n")
    ended = pupitre("status")
    assert ended.returncode == 2
    assert "there is no setting sesion_hours. Do you mean session_hours?" in ended.stderr


def test_empty_address_of_a_server_is_refused(pupitre: Shell) -> None:
    ended = pupitre("db", "create", "--url", "")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "--url is not an address" in ended.stderr


def test_contradicting_options_are_refused(pupitre: Shell) -> None:
    assert "contradict" in pupitre("audit", "--json", "--csv").stderr
    assert "contradict" in pupitre("user", "add", "ana", "--password-stdin", "--ask", given="x\n").stderr


def test_user_of_the_machine_without_a_name_can_add_users(pupitre: Shell) -> None:
    pupitre("db", "create")
    if os.geteuid() != 0:
        pytest.skip("only root can become a user without a name")
    nameless = 4_000_000_000
    let_through(pupitre.home.parent)
    for path in (pupitre.home, *pupitre.home.rglob("*")):
        os.chown(path, nameless, nameless)
    code = (
        "import os, pkgutil, pupitre.cli.remote.user, pupitre.cli.local.accounts, pupitre.up.demo;"
        "import pupitre.portal.identity.passwords;"
        f"import aiosqlite, importlib.readers, uuid_utils; os.setgid({nameless}); os.setuid({nameless});"
        "from pupitre.cli import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "user", "add", "ana"],
        env=pupitre.environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert ended.stdout.startswith("Added ana"), ended.stderr


def test_reader_that_leaves_ends_a_listing_quietly(pupitre: Shell) -> None:
    pupitre("db", "create")
    pupitre("user", "add", "ana")
    for command in ("user list --json", "--help", "user --help", "--version"):
        # The reader has gone before the first line is written.
        reader, writer = os.pipe()
        os.close(reader)
        ended = subprocess.run(
            [sys.executable, "-m", "pupitre", *command.split()],
            env=pupitre.environment, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=120,
        )  # fmt: skip
        os.close(writer)
        assert (ended.returncode, ended.stderr) == (141, ""), command
