"""Renews the message broker's certificate, which cannot do so itself; a process of its own, run by `up` when it is due.

``run/renewal.json`` says when that is, for the supervisor, which knows nothing of certificates.
"""

import json
import sys

from pupitre import config
from pupitre.config import Settings
from pupitre.domain.certificate import look_again
from pupitre.errors import PupitreError
from pupitre.pki import issuing

BROKER = "nats"


def renew(settings: Settings) -> None:
    """Raises `SetupError` where the authority's key is on another machine."""
    issuing.ensure_certificate(settings, BROKER)
    note_renewal(settings)


def note_renewal(settings: Settings) -> None:
    """Write down when the next certificate is due (Unix time), and how often to look at its files (seconds)."""
    certificate = issuing.load_certificate(issuing.directory(settings, BROKER) / f"{BROKER}.crt")
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    due = {"due": issuing.renewal_of(certificate).timestamp(), "look": look_again(life.total_seconds())}
    path = settings.run_dir / "renewal.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(due) + "\n")
    partial.rename(path)


if __name__ == "__main__":
    try:
        renew(config.load())
    except PupitreError as error:
        print(f"The message broker's certificate is not renewed: {error}", file=sys.stderr)
        sys.exit(1)
