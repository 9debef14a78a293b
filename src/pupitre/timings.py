"""Timings: every pause, gather time and time limit that no setting changes. In seconds; in milliseconds where named MS.

A gather time is how long the first of several things waits for the others: it trades latency for fewer transactions
and messages. A time limit ends what would otherwise wait for ever. What an administrator may want to change is a
setting: see `pupitre.config`.
"""

from typing import NamedTuple


class Pauses(NamedTuple):
    """Pauses between tries: each is twice as long as the one before, from ``first`` to ``longest``."""

    first: float
    longest: float

    def after(self, tries: int) -> float:
        """The pause after so many tries in a row."""
        return min(self.first * 2.0 ** min(max(0, tries - 1), 60), self.longest)


class StatusTimings(NamedTuple):
    """Times that follow from the setting ``status_update_interval``, the interval between two words of the cluster."""

    interval: float

    @property
    def silence_limit(self) -> float:
        """The cluster is lost: two words may be lost or late."""
        return self.interval * 2.5

    @property
    def stale_after(self) -> float:
        """Pages say how old the status is: one word that is late is no matter, one that is missing is."""
        return self.interval * 1.5

    @property
    def feed_confirm(self) -> float:
        """The portal looks at the databases though nothing woke it: half, so that it sees a missing word in time."""
        return self.interval * 0.5

    @property
    def write_confirm_ms(self) -> int:
        """Interval (ms) at which it is written that all rows hold: a quarter, so that it never makes them stale."""
        return min(STATUS_CONFIRM_MS, int(self.interval * 250))


STATUS_CONFIRM_MS = 1000
"""That the status is whole is written no less often than this."""

# Messages

RESEND = Pauses(0.25, 2.0)
"""Between two tries to have a message answered: the peer may be back at any moment, and is few bytes away."""
BROKER_RECONNECT = Pauses(0.25, 2.0)
"""Between two tries to reach the broker."""
BROKER_CONNECT_LIMIT = 5
BROKER_PING = 10
"""Between two signs of life to the broker; two that are not answered end the connection."""
BROKER_SETTLE = 2
"""For handlers under way, and for what they said, when a process ends."""
BROKER_FLUSH = 1.0
ANSWER_LIMIT = 2.0
"""For the answer to a message: a commit on a busy machine takes some 100 ms."""

# Batches

GATHER = 0.004
"""After a group of several, for the next one: a commit on a good disk takes about as long."""
GATHER_CHANGES = 0.03
"""For changes of desktops on their way to the endpoint; outcomes do not wait, and bring their rows."""
GATHER_EVENTS = 0.01
"""After more than one change at once, for the next ones to portals' streams."""
EVENTS_BUSY, GATHER_STREAM = 0.5, 0.015
"""After many changes at once: how long each stream gathers its own changes, and for how long at a time."""
GATHER_STEPS = 0.02
"""For a host's step on the way, which is told alone after that; what it leads to may come sooner and tells all."""

# Work that is tried again

RETRY = Pauses(0.25, 2.0)
"""Between two tries of a loop's work."""
STEP_RETRY = Pauses(1.0, 30.0)
"""Between two tries of a step of one object, as a desktop or a host."""
DATABASE_RETRY = 1.0
"""Between two tries of what cannot begin, or go on, without a database."""
LISTENER_RECONNECT = Pauses(0.05, 2.0)
"""Between two tries to listen to a database that does not answer."""
CHILD_RESTART = Pauses(0.5, 30.0)
"""Before `pupitre up` starts a child process again that has ended."""
CHILD_HEALTHY = 60.0
"""Life of a child process after which earlier failures are forgotten."""
CHILD_HURRIED = 1.0
"""For a child process to stop once somebody is in a hurry."""
CHILD_LAST_OUTPUT = 0.5
"""For what an ended child has written: a grandchild may hold the pipe open for ever."""
HOST_RETRY = 1.0
"""Between two tries of a host to write, to clear up or to say that it shuts down."""
FULL_DISK_RETRY = Pauses(2.0, 60.0)
"""Between two tries to let a guest go on that waits for space on its host's disk."""

# Databases

DATABASE_CONNECT = 10.0
DATABASE_CLOSE = 2.0
"""For the server to answer when a connection is closed, and for a file to be closed."""
DATABASE_LEAVE = 5.0
"""For transactions under way when a database is closed."""
DATABASE_LISTENER_ANSWER = 10.0
"""For the server of a listener to answer."""
DATABASE_LISTENER_CHECK = 30.0
"""Silence after which a listener asks whether the server is still there."""
DATABASE_CANCEL = 1.0
"""From closing an overdue connection to the first cancellation, and between two of these."""
DATABASE_LISTENER_END = 1.0
"""Between two cancellations of a listener."""
SQLITE_WAL_RETRY = 0.01
"""Between two tries to have a file write ahead; SQLite does not wait there by itself."""
JOURNAL_LOCK = 2.0
"""For another process to let go of a host's journal."""
POOL_WAIT = 10.0
"""For a connection of a pool."""
POOL_DISCARD = 1.0
"""Between two times that all connections are discarded: a server that stays of no use is not flooded."""
POOLER_LIMIT = 10.0
"""For each step of the search for a pooler between us and the server."""
SQLITE_WAIT = 10.0
"""For another process's transaction on the same file."""
MARIADB_POLL = 0.02
"""Between two looks at the row of news while it moves: MariaDB notifies nobody."""
MARIADB_IDLE = 60
"""After which MariaDB ends a transaction in which nothing happens, and with it its connection."""
ADMIN_CONNECT = 60.0
"""For a server to take a connection of an administrator's command: it may have just been started."""
PRUNE_PAUSE = 0.01
"""Between two parts of a pruning, for those who work."""
AUDIT_LOOK = 0.12
"""For one look into the audit log: a page has to come within 0.2 s."""
AUDIT_SKEW_MS = 3600 * 1000
"""By which clocks of machines that write the audit log may differ without anything being missed."""

# Endpoint

ACCEPT_WRITE = 0.2
"""From the cluster's word that it has a command until that is written down: most outcomes come sooner."""
DEADLINES_UNKNOWN = 60.0
"""Until deadlines are looked at again that could not be read; less if the check interval is less."""
GREETING_LIMIT = 1.0
"""For the cluster to say that it is there."""
PAGE_LIMIT = 5.0
"""For the cluster to read a page of its rows."""
REVOCATION_LIMIT = 5.0
"""For the cluster to have all hosts answer that they know of revocations."""

# Cluster server

STAND_BY = 2.0
"""Silence after which another cluster server is taken over from."""
CONFIRMATION_POLL = 1.0
"""Between two looks whether an administrator has confirmed a restored database: another process writes that."""
KEEP_MS = 24 * 3600 * 1000
"""For which gone desktops and reported commands are kept."""
REPORT_RESEND = Pauses(0.25, 5.0)
"""Between two tries to have the endpoint take outcomes and audit events."""
ORDER_RESEND = 5.0
"""Until an order to a host that had no visible effect is sent again."""
ORDER_RETRY = 1.0
"""Until an order to a host that was not taken is sent again, or a host that takes none is looked at again."""
RECONNECT_POLL = 0.2
"""Between two looks whether hosts can be heard again."""
HALT_REPORT_LIMIT = 20.0
"""For outcomes to reach the endpoint, which may be away, before a halted cluster ends."""
HALT_RECHECK = 1.0
"""Until hosts and outcomes are looked at again of which nothing was heard during a halt."""
HOST_DESCRIBE_LIMIT = 2.0
"""For a host to describe itself."""
HOST_DESCRIBE_WAIT = 4.0
"""For which a host that is registered and does not answer is asked again: it may have just been started."""
HOST_DESCRIBE_RETRY = 0.25
HOST_REVOCATION_LIMIT = 1.5
"""For one host to close the consoles of revoked sign-ins: all of them within `REVOCATION_LIMIT`."""
IMAGES_RECHECK = 30.0
"""Until a host whose images were refused is asked again: their publisher may be known by then."""
CLOCK_SAMPLE = 0.1
"""Between two heartbeats that count for a clock: those that waited in one queue say the same."""
CLOCK_TOLERATED_MS = 5000
"""Difference of a host's clock of which nobody is warned: consoles open at up to six times as much."""
AUDIT_LIMIT_SPAN_MS = 3600 * 1000
"""In which one host may cause so many lines of the audit log."""
WAKE_EVERY = 3.0
"""Between two packets to a sleeping machine."""
HOST_RECHECK = 5.0
"""Until a step of a host that has had no visible effect is taken again."""
BEFORE_DEADLINE_MS = 2000
"""By which a command that cannot succeed any more ends, with its reason, before it would time out."""

# Host

HANDSHAKE_LIMIT = 5.0
"""For TLS on a console port, and again for the greeting."""
VIEWER_LIMIT = 10.0
"""From the first byte of a native viewer to the guest's screen: a person's network."""
VIEWER_GUEST_LIMIT = 5.0
"""For the guest's screen to answer a native viewer."""
CLOSE_GRACE = 1.0
"""In which a console session that is ended may still be sent what is on its way."""
TICKET_LIFE = 180.0
"""No ticket may be valid for longer, leeway included, so that what is remembered stays bounded."""
ACPI_RETRY = 5.0
"""Until a guest that still runs is asked once more to shut down."""
ORPHAN_SCAN = 20.0
"""Between two scans for what belongs to no desktop."""
HOST_SHUTDOWN_LIMIT = 20.0
"""To tell the cluster; for a process that stops, to remove its guests too."""
QEMU_IMG_LIMIT = 60.0
"""For one ``qemu-img``."""
LIBVIRT_CALL_LIMIT = 30.0
LIBVIRT_START_LIMIT = 60.0
"""A start under emulation on a busy host takes a few seconds; probing QEMU for the first time a few more."""
LIBVIRT_EVENT_LIMIT = 5.0
"""In which an event follows its cause; within one millisecond as a rule."""
SIMULATED_SLOW_START = 3.0

# Portal and gateway

KEEP_ALIVE = 10.0
"""Silence after which an event stream says that it lives: proxies may close what is silent for 15."""
FAILURE_SHOWN_MS = 10 * 60 * 1000
"""For which a desktop that failed stays in sight unless its user puts it away."""
ROW_EXPECTED_MS = 60 * 1000
"""After a start that succeeded, for its desktop's row to arrive before the desktop counts as gone."""
CONSOLE_TICKET = 30
VIEWER_TICKET = 60
PICTURE_TICKET = 60
PICTURE_WINDOW = 10
"""Within which the same picture has the same address, so that browsers may keep it."""
PICTURE_AGE = 5
"""For which a browser may show a picture again."""
THROTTLE_PRUNE = 60.0
"""Between two times that windows of failed sign-ins which are over are removed."""
CONSOLE_DIAL_LIMIT = 10.0
"""From dialling a host to its answer."""
WEBSOCKET_PING = 10.0
"""After which a viewer is asked for a sign of life: proxies may close what they read nothing from in 15."""
WEBSOCKET_PACE = 1.0
"""For which a viewer that sends too many control frames is not read: they carry nothing."""

# Servers

HTTP_CLOSE_GRACE = 2
"""For open requests once a server stops."""
LINGER = 5.0
"""In which a connection that is closing may still be sent what waits for it."""
PROXY_IDLE = 150.0
"""For which a trusted proxy may keep a connection for later: longer than Caddy (120) and nginx (60) do, so that they
close it."""
ACCEPT_RETRY = 0.1
"""Until a connection that could not be accepted is tried again: the kernel offers it at once."""
TURNED_AWAY_LOG = 10.0
"""Between two lines of the log about callers that were turned away."""
OPS_CHECK_LIMIT = 1.5
"""For a check of an ops port; whoever asks waits for `OPS_ANSWER_LIMIT`."""
OPS_ANSWER_LIMIT = 2.0

# Clocks and certificates

CLOCK_JUMP_MS = 2000
"""By which the wall clock may differ from the steady one before it counts as set."""
CLOCK_BELIEVED = 60.0
"""After which a clock that was set is believed."""
BROKER_CERTIFICATE_LOOK = 30.0
"""Between two looks at the broker's certificate where nothing else was noted."""
CLI_SESSION = 600.0
"""Life of the sign-in that one command makes for itself."""

# Programs and files

LIMIT_GUEST_LIMIT = 10
"""For prlimit to set the memory of a guest."""
DISK_CHECK_LIMIT = 20
"""For qemu-img to look at one disk."""
IMAGE_CHECK_CPU, IMAGE_CHECK_LIMIT = 10, 60
"""Of a process that reads a stranger's image: of the processor, and by the clock."""
BUILD_SILENT = 3600
"""Without a word, after which a builder on another machine is taken for dead."""
BLOB_ARRIVING = 3600
"""For which a blob that no manifest names may be one that is being copied, manifest last."""
BUILD_LEFTOVER = 86400
"""Age at which the folder of a build was left behind: no build takes as long."""
