"""The authority that issues certificates, its replacement by another one, and how its files are written.

Its folder ``pki/ca`` holds ``ca.key``, which signs, and ``ca.crt``, a bundle of every certificate authority to
trust. While one authority replaces another (`Rotation`) the bundle holds both, and every process trusts both.
What stays true: an authority is never replaced unless somebody says so, a key is never readable by others, and
each step of a rotation is one file put in place.
"""

import datetime
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from pupitre.config import Settings
from pupitre.errors import SetupError

AUTHORITY_LIFE = datetime.timedelta(days=3650)
CLOCK_SLACK = datetime.timedelta(minutes=5)
"""New certificates are valid this long before now, or a tenth of a short life, for a peer whose clock is behind."""


class Rotation(StrEnum):
    """State of the replacement of the authority."""

    NONE = "none"
    BEGUN = "begun"
    """The new authority is trusted beside the old one, which still signs."""
    SWITCHED = "switched"
    """The new one signs; the old one is still trusted."""


def folder(settings: Settings) -> Path:
    """Folder of the authority on the machine that has it."""
    return settings.pki_dir / "ca"


def is_here(settings: Settings) -> bool:
    """Whether this machine has the authority's key."""
    return (folder(settings) / "ca.key").exists()


def ensure(settings: Settings) -> Path:
    """The bundle, made with a new authority on a machine without any certificate. Its key stays there, mode 0600.

    Raises `SetupError` where the authority is missing while certificates are there: a new one would cut off
    every process and machine that has a certificate of the old one.
    """
    with lock(settings):
        if not is_here(settings):
            if issued := _certificates_here(settings):
                raise SetupError(
                    f"The authority's key {folder(settings) / 'ca.key'} is missing, and {issued[0]} is a certificate"
                    f" of that authority{f', as are {len(issued) - 1} others' if issued[1:] else ''}.",
                    f"Bring back the folder {folder(settings)}; if it is lost, run `pupitre pki init --new-authority`,"
                    " which cuts off every other machine until it has new certificates.",
                )
            _replace(settings)
    return folder(settings) / "ca.crt"


def create_anew(settings: Settings) -> None:
    """A new authority in place of whatever there was. What the old one has issued is good no more."""
    with lock(settings):
        _replace(settings)


def signer(settings: Settings) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The authority that signs: that one of the bundle to which the key belongs. Raises `SetupError`."""
    path = folder(settings) / "ca.key"
    if not is_here(settings):
        raise SetupError(
            f"The authority's key is not on this machine: {path} is missing.",
            f"Run this where it is, or bring back the folder {path.parent}.",
        )
    try:
        key = serialization.load_pem_private_key(read(path), password=None)
    except ValueError as error:
        raise SetupError(f"{path} is no private key.", f"Bring back {path.parent} from a backup.") from error
    for certificate in bundle(settings):
        if isinstance(key, ec.EllipticCurvePrivateKey) and certificate.public_key() == key.public_key():
            return certificate, key
    raise SetupError(
        f"{path} belongs to no certificate in {path.with_suffix('.crt')}.",
        f"Bring back both files of {path.parent} from one backup.",
    )


def bundle(settings: Settings) -> list[x509.Certificate]:
    """Every authority that is trusted. Raises `SetupError`."""
    return load_certificates(folder(settings) / "ca.crt")


# Rotation


def rotation(settings: Settings) -> Rotation:
    """State of the rotation, read from the files alone."""
    if (folder(settings) / "next.key").exists():
        return Rotation.BEGUN
    return Rotation.SWITCHED if is_here(settings) and len(bundle(settings)) > 1 else Rotation.NONE


def last_step(settings: Settings) -> float:
    """Unix time of the last step of a rotation."""
    keys = [folder(settings) / name for name in ("ca.key", "next.key")]
    return max(path.stat().st_mtime for path in keys if path.exists())


def begin_rotation(settings: Settings) -> None:
    """Make the next authority, and trust it beside the one that signs. May be repeated."""
    with lock(settings):
        current, _ = signer(settings)
        if (folder(settings) / "next.key").exists():
            return
        if len(bundle(settings)) > 1:
            raise SetupError(
                "The last rotation is not finished: two authorities are trusted.", "Run: pupitre pki rotate finish"
            )
        certificate, key = _make()
        # In this order: a key without its certificate would sign what nobody trusts.
        write(folder(settings) / "ca.crt", pem(current) + pem(certificate))
        write(folder(settings) / "next.key", private_pem(key), mode=0o600)


def switch_rotation(settings: Settings) -> None:
    """Sign by the next authority from now on. May be repeated. Raises `SetupError` where none was begun."""
    with lock(settings):
        if (folder(settings) / "next.key").exists():
            (folder(settings) / "next.key").replace(folder(settings) / "ca.key")
            os.utime(folder(settings) / "ca.key")  # see `last_step`
        elif rotation(settings) is not Rotation.SWITCHED:
            raise SetupError("No rotation of the authority has begun.", "Run: pupitre pki rotate begin")


def finish_rotation(settings: Settings) -> None:
    """Trust the authority that signs, and no other. May be repeated. Raises `SetupError` before the switch."""
    with lock(settings):
        if (folder(settings) / "next.key").exists():
            raise SetupError("The new authority does not sign yet.", "Run: pupitre pki rotate switch")
        write(folder(settings) / "ca.crt", pem(signer(settings)[0]))


# Files


def load_certificates(path: Path) -> list[x509.Certificate]:
    """All certificates in a PEM file, one at least. Raises `SetupError`."""
    try:
        return x509.load_pem_x509_certificates(read(path))
    except ValueError as error:
        raise SetupError(
            f"{path} is no certificate.", f"Bring it back from a backup, or move {path.parent} away and run"
            f" `pupitre pki issue {path.parent.name}` where the authority is.",
        ) from error  # fmt: skip


def read(path: Path) -> bytes:
    """Raises `SetupError`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}.", "Run `pupitre pki create`.") from error


def write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Put a whole file in place or none; a key is never readable by others, not even for a moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def private_pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


@contextmanager
def lock(settings: Settings) -> Iterator[None]:
    """Two processes that start at once must not make two authorities. Not to be nested."""
    settings.pki_dir.mkdir(parents=True, exist_ok=True)
    with open(settings.pki_dir / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def unchanged(certificates: Path) -> Iterator[None]:
    """Lock: nobody of this machine writes to the directory ``certificates`` meanwhile: its files belong together."""
    try:
        file = open(certificates.parent / ".lock")  # noqa: SIM115 - closed below
    except OSError:  # carried here: no process writes it
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def _certificates_here(settings: Settings) -> list[Path]:
    return sorted(path for path in settings.pki_dir.glob("*/*.crt") if path.stem == path.parent.name)


def _replace(settings: Settings) -> None:
    certificate, key = _make()
    (folder(settings) / "next.key").unlink(missing_ok=True)
    write(folder(settings) / "ca.crt", pem(certificate))
    write(folder(settings) / "ca.key", private_pem(key), mode=0o600)


def _make() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    # A name of its own: two that are trusted at once can be told apart.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Pupitre authority {serial:040x}"[:26])])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate, key
