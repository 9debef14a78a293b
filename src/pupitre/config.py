"""Every setting, typed, with its unit and what it changes; wrong values stop the start.

Read from ``$PUPITRE_HOME/pupitre.toml`` and from the environment, which wins:
``PUPITRE_PORTAL_PORT=9000`` is ``portal_port = 9000``.
"""

import json
import os
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from pupitre.domain.command import CommandKind
from pupitre.domain.command_kinds import COMMAND_KINDS
from pupitre.domain.origin import ServedHosts, host_name, is_loopback, own_origin, parse_origin
from pupitre.domain.peer import LOOPBACK, Network, TrustedProxies, parse_network
from pupitre.environment import FILE, PREFIX, check_home, check_variables, default_home, read_file, unknown, user_folder
from pupitre.errors import SetupError
from pupitre.timings import StatusTimings

DatabaseName = Literal["accounts", "commands", "status", "cluster"]
DatabaseRole = Literal["portal", "endpoint", "cluster", "owner"]
"""As whom a database is opened; the owner makes and migrates it."""

_addresses = TypeAdapter(dict[str, dict[str, str]])


def _words(value: object) -> object:
    """A list as the environment writes it, separated by commas or as JSON."""
    if not isinstance(value, str):
        return value
    if not value.strip().startswith("["):
        return [word for word in value.split(",") if word.strip()]
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("the list cannot be read: separate its words by commas, without brackets") from None


def _networks(value: object) -> object:
    words = _words(value)
    if not isinstance(words, list | tuple):
        raise ValueError('a list of addresses and networks is needed, as ["10.0.0.5", "10.1.0.0/24"]')
    return tuple(parse_network(word) if isinstance(word, str) else word for word in words)


def _origins(value: object) -> object:
    words = _words(value)
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise ValueError('a list of origins is needed, as ["https://lab.example.org"]')
    return tuple(dict.fromkeys(parse_origin(word) for word in words))


def _listening(value: object) -> object:
    """An address or a name to listen on; ``[::1]`` is written without its brackets."""
    if not isinstance(value, str):
        return value
    try:
        address = ip_address(value.strip().removeprefix("[").removesuffix("]"))
    except ValueError:
        return host_name(value)
    return str(address)


class Settings(BaseSettings):
    """All settings. Times are in seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, allow_inf_nan=False)

    home: Path = Field(default_factory=default_home, description="State folder: databases, keys, overlays.")
    cluster: str = Field(
        "main", pattern=r"^[a-z0-9-]{1,32}$", description="Name of the cluster, part of every NATS subject."
    )

    # Images
    image_store: Path | None = Field(
        None,
        description="Folder of images, shared by all homes of a user. Default: /var/cache/pupitre/images for root,"
        " else ~/.cache/pupitre/images.",
    )
    image_look: float = Field(
        30, gt=0, le=60,
        description="A host looks this often for images that came by rsync or a network share: no event tells of them.",
    )  # fmt: skip
    demo_images: bool = Field(True, description="`up` builds `tiny`, then `debian-desktop` in the background.")

    # Web
    portal_host: Annotated[str, BeforeValidator(_listening)] = Field(
        "127.0.0.1",
        description="Address the web process listens on; 0.0.0.0 or :: for all of them, with a public_origin.",
    )
    portal_port: int = Field(8080, ge=0, le=65535, description="Port of portal and gateway in `up`.")
    gateway_port: int = Field(8081, ge=0, le=65535, description="Port of `pupitre gateway` when it runs alone.")
    public_origin: Annotated[str, AfterValidator(parse_origin)] | None = Field(
        None,
        description="Origin browsers see, as https://lab.example.org. Default: http://<portal_host>:<portal_port>.",
    )
    extra_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_origins)] = Field(
        (), description="Further origins under which browsers see it. A host that none of them names is not served."
    )
    behind_proxy: bool = Field(False, description="A reverse proxy ends TLS and sets X-Forwarded-*.")
    trusted_proxies: Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_networks)] = Field(
        LOOPBACK,
        description='Addresses and networks of those proxies, as ["10.0.0.5"]; what anyone else forwards is not read.'
        " Default: this machine.",
    )
    tls_cert: Path | None = Field(None, description="PEM certificate of the web process, with tls_key.")
    tls_key: Path | None = Field(None, description="PEM key of tls_cert.")
    web_packages: Path | None = Field(
        None, description="Folder of npm packages that browsers are served. Default: node_modules of the source tree."
    )
    session_hours: float = Field(12, gt=0, description="Hours after which a sign-in ends, unless it is extended.")
    session_most_hours: float | None = Field(
        None,
        gt=0,
        description="Hours after which a sign-in ends however often it was extended. Default: twice session_hours;"
        " not more than session_hours: none is extended.",
    )
    sign_in_per_minute: int = Field(
        10,
        ge=1,
        description="Failed sign-ins allowed per minute for one name at one address. Ten times as many in ten minutes"
        " are allowed for a name from everywhere, sixty times as many in an hour for an address.",
    )

    # Connections of the web process and of ops ports, see pupitre.net.limits
    max_connections: int | None = Field(
        None, ge=1, description="Connections at once. Default: what the limit of open files allows, at most 32768."
    )
    max_connections_per_address: int | None = Field(
        None,
        ge=1,
        description="Connections at once from one address, which may be a whole school's; a browser opens up to 8."
        " Proxies are exempt. Default: half of max_connections.",
    )
    head_timeout: float = Field(10, gt=0, description="Seconds in which a request's headers have to arrive.")
    body_timeout: float = Field(30, gt=0, description="Seconds in which its body has to arrive, from then on.")
    idle_timeout: float = Field(15, gt=0, description="Seconds without a request after which a connection is closed.")
    stall_timeout: float = Field(
        30, gt=0, description="Seconds after which a caller is dropped who reads nothing of the answer that waits."
    )

    # Commands
    min_command_interval: float = Field(0.5, ge=0, description="Least seconds between two commands of one user.")
    command_timeout: float = Field(120, gt=0, description="Seconds after which a command without outcome is timed out.")
    command_timeouts: dict[CommandKind, Annotated[float, Field(gt=0)]] = Field(
        {}, description="The same for single kinds of command, as {boot_desktop = 60}. Hosts have 600 to come or go."
    )
    command_timeout_check_interval: float = Field(5, gt=0, description="Longest wait between two checks for time-outs.")
    connection_grace: float = Field(
        10, gt=0, description="Seconds a command waits for an unreachable cluster before CONNECTION_ERROR."
    )
    when_unreachable: Literal["queue", "refuse"] = Field(
        "queue",
        description="A command while the cluster is not reached: queue it for connection_grace, or refuse it at once.",
    )
    user_in_flight: int = Field(
        8, ge=1, description="Starts of one user that the cluster works on at the same time; more wait in a queue."
    )
    status_update_interval: float = Field(
        10, gt=0, description="Seconds within which a lost status change is repaired."
    )
    student_desktops: int = Field(1, ge=0, description="Desktops a student may have at once.")
    teacher_desktops: int = Field(5, ge=0, description="Desktops a teacher may have at once.")
    admin_desktops: int = Field(20, ge=0, description="Desktops an administrator may have at once.")

    # Links
    nats_url: str = Field("tls://127.0.0.1:4222", description="NATS servers, comma separated.")
    heartbeat: float = Field(5, gt=0, description="Seconds between two heartbeats of a host.")
    vcpu_overcommit: float = Field(8, ge=1, description="Virtual CPUs given out per CPU of a host.")
    host_timeout: float = Field(16, gt=0, description="Seconds of silence after which a host's desktops are lost.")
    host_give_up: float = Field(
        300, gt=0, description="Seconds of silence after which a host counts as timed out, and waking it as failed."
    )
    drain_notice: float = Field(
        60, ge=0, description="Seconds that users have to save their work before their host shuts down."
    )
    shutdown_grace: float = Field(
        30, ge=0, le=86400, description="Seconds a guest may take to shut down by itself before it is ended."
    )
    wake_address: str = Field(
        "255.255.255.255:9",
        pattern=r"^[^:]+:\d{1,5}$",
        description="Where Wake-on-LAN packets are sent: a broadcast address and a UDP port.",
    )

    # Host
    host_name: str = Field(
        "host-1", pattern=r"^[a-z0-9][a-z0-9-]{0,31}$", description="Name of the host that this process serves."
    )
    host_address: str = Field("127.0.0.1", description="Address where the gateway reaches this host's consoles.")
    console_port: int = Field(0, ge=0, le=65535, description="Port of the console server; 0 takes a free one.")
    viewer_port: int | None = Field(
        None, ge=0, le=65535, description="Port for native viewers (VNC with TLS); 0 takes a free one. Default: none."
    )
    hypervisor: str = Field(
        "qemu:///embed",
        description="libvirt URI; qemu:///embed keeps its root under home; simulated://prompt is in memory.",
    )
    accelerator: Literal["auto", "kvm", "tcg"] = Field(
        "auto", description="auto uses KVM when a guest really runs on it."
    )
    guests_on_stop: Literal["keep", "destroy"] = Field(
        "keep", description="What SIGTERM to the host agent does to guests."
    )
    guest_network: Literal["none", "user"] = Field(
        "none", description="user lets guests reach the host's loopback at 10.0.2.2."
    )
    require_confinement: Literal["none", "user", "mandatory"] = Field(
        "none",
        description="What guests need before this host takes any: user, that QEMU is not root; mandatory, AppArmor or"
        " SELinux too. Without it the host does what the machine allows.",
    )
    host_memory_mib: int | None = Field(None, gt=0, description="Memory for guests; default: all but 2 GiB.")
    start_limit: int = Field(4, ge=1, description="Guests one host starts at the same time.")
    host_power_off: tuple[str, ...] = Field(
        (),
        description='What shuts this machine down, as ["systemctl", "poweroff"]. Empty: the host agent only ends.',
    )
    hosts: int = Field(1, ge=1, le=64, description="Hosts that `up` runs on this machine, each with its share of it.")

    # Certificates
    certificate_days: float = Field(
        365,
        gt=0,
        le=3650,
        description="Life of new certificates in days; each is renewed when two thirds of it are over.",
    )

    # Databases
    databases: Path | None = Field(
        None,
        description="File with each role's addresses of the databases, as `pupitre db create --url` writes it."
        " Default: databases.json in home; without it, SQLite.",
    )
    database_poll: float = Field(
        0.5, ge=0.02, description="Longest pause between two looks for news on MariaDB, which cannot wake anyone."
    )
    audit_days: float = Field(
        365,
        ge=1,
        description="Days after which `pupitre db prune`, which `up` runs daily, takes lines of the audit log.",
    )
    command_days: float = Field(
        90, ge=1, description="The same for commands, from their end. They are what a user's list of commands shows."
    )

    # Processes
    ops_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Port on the loopback for /healthz, /readyz, /metrics of a process, with the token in ops.token;"
        " 0: none. `up` gives it to the cluster, the next ones to endpoint, web and hosts.",
    )
    log_format: Literal["text", "json"] = Field("text", description="Form of log lines on standard error.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Log lines of this level and above are written."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, InitSettingsSource(settings_cls, read_file(default_home()))

    @model_validator(mode="after")
    def _safe_address(self) -> Self:
        if not self.public_origin:
            try:
                self.origin  # noqa: B018  # its own check
            except ValueError as error:
                raise ValueError(
                    f"portal_host {self.portal_host} makes no origin that browsers send: set public_origin,"
                    " as https://lab.example.org"
                ) from error
        elif self.tls_cert and self.public_origin.startswith("http:"):
            raise ValueError(f"public_origin {self.public_origin} is http, but tls_cert makes it https: write https://")
        if not is_loopback(self.portal_host) and not (self.behind_proxy or self.tls_cert):
            raise ValueError(
                f"portal_host {self.portal_host} is beyond loopback: set tls_cert and tls_key, or behind_proxy = true"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together")
        if "trusted_proxies" in self.model_fields_set and not self.behind_proxy:
            raise ValueError("trusted_proxies is set, but behind_proxy is not: set behind_proxy = true as well")
        return self

    @property
    def run_dir(self) -> Path:
        """Sockets and locks; emptied by `up`."""
        return self.home / "run"

    @property
    def notify_dir(self) -> Path:
        """Folder in which processes of this machine wake each other, see `pupitre.runtime.notifier`."""
        return self.run_dir / "notify"

    @property
    def pki_dir(self) -> Path:
        """One certificate directory per role: ``ca.crt``, ``<role>.crt``, ``<role>.key``."""
        return self.home / "pki"

    @property
    def images_dir(self) -> Path:
        if self.image_store:
            return self.image_store
        if given := os.environ.get("XDG_CACHE_HOME"):
            return Path(given) / "pupitre/images"
        return (Path("/var/cache") if os.geteuid() == 0 else user_folder() / ".cache") / "pupitre/images"

    @property
    def host_dir(self) -> Path:
        """This host's own files: embed root, overlays, journal."""
        return self.home / "hosts" / self.host_name

    @property
    def packages_dir(self) -> Path:
        return self.web_packages or Path(__file__).parents[2] / "node_modules"

    @property
    def proxies(self) -> TrustedProxies:
        """Those whose forwarded addresses are read."""
        return TrustedProxies(self.trusted_proxies if self.behind_proxy else ())

    @property
    def origin(self) -> str:
        """The origin that browsers must send."""
        if self.public_origin:
            return self.public_origin
        return own_origin("https" if self.tls_cert else "http", self.portal_host, self.portal_port)

    @property
    def served(self) -> ServedHosts:
        """All origins, ours first, and the hosts for which requests are answered."""
        return ServedHosts(dict.fromkeys((self.origin, *self.extra_origins)))

    @property
    def status_timings(self) -> StatusTimings:
        """Times that follow from `status_update_interval`."""
        return StatusTimings(self.status_update_interval)

    def timeout_of(self, kind: CommandKind) -> float:
        """Seconds that a command of this kind may take."""
        return self.command_timeouts.get(kind) or COMMAND_KINDS[kind].timeout or self.command_timeout

    @property
    def session_ms(self) -> int:
        """Length of a sign-in from its beginning or from an extension (ms)."""
        return int(self.session_hours * 3_600_000)

    @property
    def session_most_ms(self) -> int:
        """Longest time that a sign-in lasts, however often it is extended (ms)."""
        most = 2 * self.session_hours if self.session_most_hours is None else self.session_most_hours
        return int(max(most, self.session_hours) * 3_600_000)

    @property
    def databases_file(self) -> Path:
        return self.databases or self.home / "databases.json"

    def database_url(self, name: DatabaseName, role: DatabaseRole = "owner") -> str:
        """URL of a database, with its password.

        Raises `SetupError` when the file of addresses has none for this role.
        """
        addresses = self.database_urls()
        if addresses is None:
            return f"sqlite+aiosqlite:///{self.home / 'db' / name}.sqlite"
        try:
            return addresses[role][name]
        except KeyError:
            raise SetupError(
                f"{self.databases_file} has no address of the database {name} for {role}.",
                "Run: pupitre db create --url … on the machine that has the owner's addresses.",
            ) from None

    def database_urls(self) -> dict[str, dict[str, str]] | None:
        """Addresses by role and database; None where the databases are SQLite's. Raises `SetupError`."""
        try:
            return _addresses.validate_json(self.databases_file.read_bytes())
        except FileNotFoundError as error:
            if self.databases:
                raise SetupError(f"{self.databases} does not exist.", "Mend the setting databases.") from error
            return None
        except (OSError, ValidationError) as error:
            # Without the details: they would show passwords.
            raise SetupError(
                f"{self.databases_file} cannot be read as addresses by role and database.",
                "Mend it, or move it away and run: pupitre db create --url …",
            ) from (error if isinstance(error, OSError) else None)


def load() -> Settings:
    """The settings of this process. Raises `SetupError` that names the file, folder or setting and the remedy."""
    home = default_home()
    check_home(home)
    check_variables(Settings.model_fields)
    try:
        return Settings()
    except SettingsError as error:
        # pydantic-settings: a list or a table in the environment that is no JSON.
        raise SetupError(f"Environment: {error}.", "Write lists and tables there as JSON.") from error
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"] if part != "[key]"] or ["settings"]
        key = ".".join(path)
        if first["type"] == "extra_forbidden":
            raise SetupError(f"{home / FILE}: {unknown(key, Settings.model_fields)}", "Correct it there.") from None
        raise SetupError(
            f"Setting {key}: {first['msg']}.",
            f"Correct it in {home / FILE} or in {PREFIX}{path[0].upper()}.",
        ) from error
