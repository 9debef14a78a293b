"""Tables of the four databases. Times are Unix milliseconds; ids are UUIDs as text.

Only portable column types and statements, because SQLite, PostgreSQL and MariaDB
all hold these tables. A ``version`` grows with every change of its database, so
that a reader asks for "what is newer than the last I saw".
"""

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, MetaData, String, Table, Text, false

from pupitre.config import DatabaseName

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
}
_ID, _NAME = String(36), String(64)


def _counter(metadata: MetaData) -> Table:
    """One row: the version given to the latest change."""
    return Table(
        "counter", metadata, Column("id", Integer, primary_key=True), Column("value", BigInteger, nullable=False)
    )


# accounts: who may sign in. Portal reads and writes.
accounts = MetaData(naming_convention=NAMING)
users = Table(
    "users",
    accounts,
    Column("id", _ID, primary_key=True),
    # In the one form that compares (`domain.username`): a name typed in another way finds it, and is not free.
    Column("name", String(128), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("password_hash", String(255), nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("display_name", _NAME, nullable=False, server_default=""),
)
sessions = Table(
    "sessions",
    accounts,
    # SHA-256 of the random token: the database never holds what opens a door.
    Column("token_hash", String(64), primary_key=True),
    Column("user_id", _ID, nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False),
)
# Wrong passwords, counted by what `domain.throttle` says; rows whose window is over are removed now and then.
sign_in_failures = Table(
    "sign_in_failures",
    accounts,
    # SHA-256 of the three that follow: a key that every database compares alike.
    Column("id", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("name", String(128), nullable=False),
    Column("address", String(64), nullable=False),
    Column("failures", Integer, nullable=False),
    # Last, since MariaDB sets columns one after the other and the others look at it.
    Column("until", BigInteger, nullable=False, index=True),
)


def _news(metadata: MetaData) -> Table:
    """One row: how often somebody was to be woken. Where the database cannot wake anyone, they look at it."""
    return Table("news", metadata, Column("id", Integer, primary_key=True), Column("value", BigInteger, nullable=False))


def _ended_sign_ins(metadata: MetaData) -> Table:
    """Sign-ins that are over, until those who must know do. ``until`` (Unix ms) is when they would have ended."""
    return Table(
        "ended_sign_ins",
        metadata,
        Column("token_hash", String(64), primary_key=True),
        Column("until", BigInteger, nullable=False),
    )


# Written together with the end of the sign-in; the portal passes them on to the commands database.
accounts_ended = _ended_sign_ins(accounts)
_news(accounts)

# commands: what was asked for and what came of it. Portal and endpoint read and write.
commands_db = MetaData(naming_convention=NAMING)
commands_counter = _counter(commands_db)
_news(commands_db)
commands = Table(
    "commands",
    commands_db,
    Column("id", _ID, primary_key=True),
    Column("user_id", _ID, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("payload", Text, nullable=False),
    Column("desktop", _ID),
    Column("state", String(16), nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("deadline", BigInteger, nullable=False),
    Column("finished", BigInteger),
    Column("fault_code", String(64)),
    Column("fault_reason", Text),
    Column("late", String(16)),
    # The cluster has yet to be told that nobody waits for this command any more.
    Column("abandon", Boolean, nullable=False),
    # The user has seen the outcome and put it away.
    Column("dismissed", Boolean, nullable=False),
    Column("version", BigInteger, nullable=False, index=True),
    Index(None, "user_id", "created"),
    Index(None, "state", "created"),
    Index(None, "abandon"),
    Index(None, "desktop"),
)
gates = Table(
    "gates",
    commands_db,
    Column("user_id", _ID, primary_key=True),
    Column("last", BigInteger, nullable=False),
)

# The endpoint has yet to tell the cluster, which tells the hosts.
commands_ended = _ended_sign_ins(commands_db)

# Who asked for what, and what came of it. Rows are added and never changed; their owner alone removes old ones.
audit = Table(
    "audit",
    commands_db,
    Column("id", _ID, primary_key=True),
    Column("at", BigInteger, nullable=False, index=True),
    # A user's id, or ``cluster`` for what it settled by itself.
    Column("actor", _ID, nullable=False),
    Column("actor_name", _NAME, nullable=False),
    # The address that the request came from; empty for what no request asked for.
    Column("origin", String(64), nullable=False),
    Column("action", String(32), nullable=False),
    Column("subject", String(255), nullable=False, index=True),
    Column("command", _ID, index=True),
    # Empty for a command that was asked for; its outcome is a row of its own.
    Column("outcome", String(64), nullable=False),
    Column("detail", Text, nullable=False),
    Index(None, "actor", "at"),
)

# status: what the cluster says. The endpoint writes, the portal only reads.
status = MetaData(naming_convention=NAMING)
status_counter = _counter(status)
_news(status)
links = Table(
    "links",
    status,
    Column("cluster", _NAME, primary_key=True),
    Column("connected", Boolean, nullable=False),
    Column("since", BigInteger, nullable=False),
    Column("reason", Text),
    Column("heard", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
)


def _host() -> "tuple[Column[Any], ...]":
    return (
        Column("name", _NAME, primary_key=True),
        Column("state", String(16), nullable=False),
        Column("address", String(255), nullable=False),
        Column("port", Integer, nullable=False),
        Column("edition", Boolean, nullable=False),
        Column("since", BigInteger, nullable=False),
        Column("reason", Text),
        Column("facts", Text),
        Column("label", _NAME, nullable=False),
        Column("mac", String(17)),
        Column("viewer_port", Integer),
        # What is wrong with it, as JSON; see `pupitre.domain.warning`.
        Column("warnings", Text),
    )


def _copy() -> "tuple[Column[Any], ...]":
    return (
        Column("host", _NAME, primary_key=True),
        Column("image", _NAME, primary_key=True),
        Column("name", String(255), nullable=False),
        Column("description", Text, nullable=False),
        Column("state", String(16), nullable=False),
        Column("since", BigInteger, nullable=False),
        Column("memory_mib", Integer, nullable=False),
        Column("vcpus", Integer, nullable=False),
        Column("progress", Double),
        Column("reason", Text),
    )


def _desktop() -> "tuple[Column[Any], ...]":
    return (
        Column("id", _ID, primary_key=True),
        Column("owner", _ID, nullable=False, index=True),
        Column("image", _NAME, nullable=False),
        Column("host", _NAME),
        Column("state", String(16), nullable=False),
        Column("since", BigInteger, nullable=False),
        Column("created", BigInteger, nullable=False),
        Column("reason", Text),
        Column("boot", Integer, nullable=False),
        Column("until", BigInteger),
    )


def _version() -> "Column[int]":
    return Column("version", BigInteger, nullable=False, index=True)


hosts = Table("hosts", status, *_host(), _version())
copies = Table("copies", status, *_copy(), Column("gone", Boolean, nullable=False), _version())
desktops = Table("desktops", status, *_desktop(), _version())

# cluster: the cluster server's own truth. Nobody else reads it.
cluster = MetaData(naming_convention=NAMING)
cluster_counter = _counter(cluster)
_news(cluster)
epochs = Table(
    "epochs",
    cluster,
    Column("id", Integer, primary_key=True),
    Column("value", BigInteger, nullable=False),
    # What was lost of earlier epochs than this is lost: an administrator has said so.
    Column("confirmed", BigInteger, nullable=False, server_default="0"),
    # The public half (hex) of the key that signs orders: every cluster server needs the same key.
    Column("order_key", String(64)),
)
# Epochs that are over, each with the version at which it ended: what a host heard beyond these was lost.
past_epochs = Table(
    "past_epochs",
    cluster,
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("ended", BigInteger, nullable=False),
)
# Hosts that have heard of changes which are not in this database, until what runs there is taken over.
host_doubts = Table(
    "doubts",
    cluster,
    Column("host", _NAME, primary_key=True),
    Column("since", BigInteger, nullable=False),
    # An administrator has said that the cluster shall go on from here.
    Column("confirmed", Boolean, nullable=False),
    # It has shown an order that the cluster's own key signed.
    Column("proven", Boolean, nullable=False, server_default=false()),
)
# Guests of those hosts that are in no row here, and those that were not taken over: they are left as they are.
unknown_guests = Table(
    "unknown_guests",
    cluster,
    Column("host", _NAME, primary_key=True),
    Column("desktop", _ID, primary_key=True),
    Column("boot", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("owner", _ID, nullable=False),
    Column("image", _NAME, nullable=False),
    # The cluster's own key has signed that it was ordered of this host.
    Column("proven", Boolean, nullable=False),
)
cluster_hosts = Table(
    "hosts",
    cluster,
    *_host(),
    # What an administrator wants of it: 'ready', 'shut_down' or 'unregistered'; see ``cluster.hosts``.
    Column("wanted", String(16), nullable=False),
    # When its desktops are taken away (Unix ms), while it drains.
    Column("drained_by", BigInteger),
    # The sum over desktops that are placed here and not gone.
    Column("used_memory_mib", Integer, nullable=False),
    Column("used_vcpus", Integer, nullable=False),
    _version(),
)
cluster_copies = Table(
    "copies",
    cluster,
    *_copy(),
    Column("spec", Text),
    Column("gone", Boolean, nullable=False),
    _version(),
)
cluster_desktops = Table(
    "desktops",
    cluster,
    *_desktop(),
    # What was asked for, beside what is seen in ``state``: 'running' or 'gone'.
    Column("wanted", String(16), nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("vcpus", Integer, nullable=False),
    _version(),
    Index(None, "state"),
)
journal = Table(
    "journal",
    cluster,
    Column("id", _ID, primary_key=True),
    Column("user_id", _ID, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("payload", Text, nullable=False),
    Column("desktop", _ID, index=True),
    Column("accepted", BigInteger, nullable=False),
    Column("deadline", BigInteger, nullable=False),
    Column("outcome", String(16)),
    Column("fault_code", String(64)),
    Column("fault_reason", Text),
    # The endpoint has confirmed the outcome.
    Column("reported", Boolean, nullable=False),
    Index(None, "reported", "accepted"),
)

# What the cluster settled by itself, until the endpoint has it in the audit log.
notes = Table(
    "notes",
    cluster,
    Column("id", _ID, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("action", String(32), nullable=False),
    Column("subject", String(255), nullable=False),
    Column("detail", Text, nullable=False),
)

DATABASES: dict[DatabaseName, MetaData] = {
    "accounts": accounts,
    "commands": commands_db,
    "status": status,
    "cluster": cluster,
}
