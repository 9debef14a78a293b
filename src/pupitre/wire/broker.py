"""The configuration of nats-server: TLS on both sides, and each role only its own subjects."""

import json
from collections.abc import Sequence
from pathlib import Path

from pupitre.config import Settings
from pupitre.pki import issuing
from pupitre.wire.subjects import Subjects, permissions


def write_config(settings: Settings, *, port: int, hosts: Sequence[str]) -> Path:
    """Write ``nats.conf`` under home and return its path. ``hosts`` are the names that may connect.

    Core NATS only: durable truth is in the databases, so nothing is stored here. No monitor port: it has no
    access rule, and shows every user of the machine who is connected and what they subscribe to.
    """
    subjects = Subjects(settings.cluster)
    users = []
    for role in ("endpoint", "cluster", *(issuing.host_role(name) for name in hosts)):
        may = permissions(subjects, role)
        users.append(
            {
                "user": issuing.nats_user(role),
                "permissions": {
                    "publish": {"allow": list(may.publish)},
                    "subscribe": {"allow": list(may.subscribe)},
                    "allow_responses": {"max": 1, "expires": "30s"},
                },
            }
        )
    certificates = issuing.directory(settings, "nats")
    document = {
        "listen": f"127.0.0.1:{port}",
        "server_name": f"pupitre-{settings.cluster}",
        "max_payload": 1_048_576,
        "ping_interval": "10s",
        "ping_max": 2,
        "write_deadline": "5s",
        "tls": {
            "cert_file": str(certificates / "nats.crt"),
            "key_file": str(certificates / "nats.key"),
            "ca_file": str(certificates / "ca.crt"),
            "verify_and_map": True,
            "timeout": 5,
        },
        "authorization": {"users": users},
    }
    path = settings.home / "nats.conf"
    path.write_text(json.dumps(document, indent=2) + "\n")  # nats-server reads JSON as its own format
    return path
