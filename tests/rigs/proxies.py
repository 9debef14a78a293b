"""Caddy and nginx with the configurations that we ship, as they would run on another machine than the portal's.

They go to portal and gateway from `SOURCE`, an address that is not the default of trusted_proxies alone,
and close what they read nothing from in 15 s.
"""

import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pupitre.up.processes.ports import free_port
from tests import ROOT
from tests.system.test_caddy import certify

DEPLOY = ROOT / "deploy"
CADDY = Path(sys.executable).with_name("caddy")
SOURCE = "127.0.0.7"
READ_LIMIT = 15
KINDS = ("caddy", "nginx")


@contextmanager
def reverse_proxy(kind: str, folder: Path, *, port: int, portal: int, gateway: int) -> Iterator[ssl.SSLContext]:
    """One of `KINDS` at ``https://localhost:<port>``; a context that trusts it."""
    folder.mkdir(parents=True, exist_ok=True)
    trust = certify(folder)
    command, environment = (_caddy if kind == "caddy" else _nginx)(folder, port, portal, gateway)
    log = folder / f"{kind}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        _until_open(port, process, log)
        yield trust
    finally:
        process.terminate()
        assert process.wait(20) in {0, -15}, log.read_text()


def _until_open(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """A proxy tells nobody when it listens."""
    pause, end = threading.Event(), time.monotonic() + 20
    while True:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert time.monotonic() < end, log.read_text()
            pause.wait(0.05)
            continue
        return


def _caddy(folder: Path, port: int, portal: int, gateway: int) -> tuple[list[str], dict[str, str]]:
    shipped = (DEPLOY / "Caddyfile").read_text()
    config = folder / "Caddyfile"
    config.write_text(shipped.replace("read_timeout", f"local_address {SOURCE}\n\t\t\t\tread_timeout"))
    return [str(CADDY), "run", "--config", str(config), "--adapter", "caddyfile"], {
        "XDG_DATA_HOME": str(folder / "caddy"),
        "XDG_CONFIG_HOME": str(folder / "caddy"),
        "PUPITRE_SITE": f"https://localhost:{port}",
        "PUPITRE_HTTP_PORT": str(free_port()),
        "PUPITRE_TLS": f"{folder / 'site.crt'} {folder / 'site.key'}",
        "PUPITRE_PORTAL": f"127.0.0.1:{portal}",
        "PUPITRE_GATEWAY": f"127.0.0.1:{gateway}",
        "PUPITRE_READ_TIMEOUT": f"{READ_LIMIT}s",
    }


def _nginx(folder: Path, port: int, portal: int, gateway: int) -> tuple[list[str], dict[str, str]]:
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program, "scripts/setup test"
    site = (DEPLOY / "nginx.conf").read_text()
    for shipped, here in (
        ("127.0.0.1:8080", f"127.0.0.1:{portal}"),
        ("127.0.0.1:8081", f"127.0.0.1:{gateway}"),
        ("listen 443 ", f"listen 127.0.0.1:{port} "),
        ("server_name lab.example.org", "server_name localhost"),
        ("/etc/ssl/lab.example.org", str(folder / "site")),
    ):
        assert shipped in site
        site = site.replace(shipped, here)
    assert not re.search(r"^[^#]*lab\.example", site, re.MULTILINE)
    (folder / "site.conf").write_text(site)
    temporary = "\n".join(
        f"{name}_temp_path {folder / name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder / 'nginx.pid'}; error_log stderr; {user}\n"
        "events {}\n"
        f"http {{ access_log off; {temporary}\nproxy_read_timeout {READ_LIMIT}s; proxy_bind {SOURCE};\n"
        f"include /etc/nginx/mime.types; include {folder / 'site.conf'}; }}\n"
    )
    return [program, "-p", str(folder), "-c", str(folder / "nginx.conf")], {}
