"""Certificates: one authority, one certificate directory per role, and the portal's ticket key.

A certificate directory holds ``ca.crt``, ``<role>.crt`` and ``<role>.key`` and is
all a process needs: a host on another machine is given its directory, never the
authority's key. Roles are ``nats``, ``endpoint``, ``cluster``, ``gateway``,
``portal`` and ``host-<name>``. Both sides of every link show a certificate
(TLS 1.3), and the role is read from the URI ``pupitre://<role>`` in it.
Everything here may be repeated: what is in order stays as it is.
"""

import datetime
import fcntl
import ipaddress
import os
import re
import ssl
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pupitre.config import Settings
from pupitre.errors import SetupError

Context = TypeVar("Context", bound=ssl.SSLContext)

AUTHORITY_LIFE = datetime.timedelta(days=3650)
CERTIFICATE_LIFE = datetime.timedelta(days=365)
RENEW_AFTER = 2 / 3
"""Part of a certificate's life after which `ensure_certificate` makes a new one."""
CLOCK_SLACK = datetime.timedelta(minutes=5)
"""New certificates are valid this long before now, for a peer whose clock is behind."""

_ROLE = re.compile(r"nats|endpoint|cluster|gateway|portal|host-[a-z0-9][a-z0-9-]{0,31}")
_BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)


def host_role(name: str) -> str:
    """The role of the host called ``name``."""
    return f"host-{name}"


def roles(settings: Settings) -> list[str]:
    """Every role that has a process on a machine that runs all of them."""
    return ["nats", "endpoint", "cluster", "gateway", "portal", host_role(settings.host_name)]


def host_dns_name(name: str) -> str:
    """The name under which the gateway verifies the host ``name``, wherever it listens."""
    return f"{name}.host.pupitre.internal"


def nats_user(role: str) -> str:
    """The user name that nats-server's ``verify_and_map`` gives the certificate of ``role``.

    It looks at e-mail names first, so each certificate carries exactly this one.
    """
    return f"{role}@pupitre.internal"


def directory(settings: Settings, role: str) -> Path:
    """The certificate directory of ``role`` on this machine."""
    return settings.pki_dir / role


def ensure_authority(settings: Settings) -> Path:
    """The authority's certificate, made if there is none. Its key stays in ``pki/ca``, mode 0600."""
    folder = settings.pki_dir / "ca"
    with _lock(settings):
        if not (folder / "ca.key").exists():
            _create_authority(folder)
    return folder / "ca.crt"


def ensure_certificate(
    settings: Settings, role: str, target: Path | None = None, addresses: Collection[str] = ()
) -> Path:
    """The certificate directory of ``role`` with a certificate that is good for months.

    A new one is issued when there is none, when two thirds of its life are over, and
    when it lacks a name or the authority changed. ``target`` puts it elsewhere, to be
    carried to another machine; ``addresses`` are further names or IP addresses under which
    a host is reached there, which native viewers verify. Raises `SetupError` for an unknown role, and where a
    certificate is due but the authority's key is on another machine.
    """
    if not _ROLE.fullmatch(role):
        raise SetupError(f"{role!r} is no role.", "Roles are nats, endpoint, cluster, gateway, portal and host-<name>.")
    target = target or directory(settings, role)
    names = _names(settings, role, addresses)
    if _is_current(target, role, names) and not _authority_changed(settings, target):
        return target
    authority = settings.pki_dir / "ca"
    if not (authority / "ca.key").exists() and (target / "ca.crt").exists():
        raise SetupError(
            f"The certificate of {role} is due for renewal, and the authority's key is not on this machine.",
            f"Run `pupitre pki issue {role} --dir DIR` where it is, and copy DIR to {target}.",
        )
    ensure_authority(settings)
    with _lock(settings):
        _issue(authority, target, role, names)
    if role == "gateway" or role.startswith("host-"):
        _write(target / "ticket.pub", _public_pem(ensure_ticket_key(settings)))
    return target


def server_context(certificates: Path, role: str) -> ssl.SSLContext:
    """TLS for a server of ``role``: only peers with a certificate of our authority get in."""
    return arm(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificates, role)


def viewer_context(certificates: Path, role: str) -> ssl.SSLContext:
    """TLS for a server of ``role`` whose callers have no certificate, and show who they are by other means."""
    context = server_context(certificates, role)
    context.verify_mode = ssl.CERT_NONE
    return context


def client_context(certificates: Path, role: str) -> ssl.SSLContext:
    """TLS for a client of ``role``; the server's name is checked."""
    return arm(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), certificates, role)


def arm(context: Context, certificates: Path, role: str) -> Context:
    """Give ``context`` the certificate of ``role`` and our rules. Raises `SetupError`."""
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(certificates / "ca.crt")
        context.load_cert_chain(certificates / f"{role}.crt", certificates / f"{role}.key")
    except OSError as error:  # ssl.SSLError is one too
        raise SetupError(
            f"The certificate directory {certificates} of {role} cannot be used: {error}.",
            f"Run `pupitre pki issue {role}` and try again.",
        ) from error
    return context


def peer_role(connection: ssl.SSLObject | ssl.SSLSocket) -> str:
    """The role of the verified peer; empty when its certificate names none."""
    der = connection.getpeercert(binary_form=True)
    if der is None:
        return ""
    extensions = x509.load_der_x509_certificate(der).extensions
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    roles = [uri.removeprefix("pupitre://") for uri in uris if uri.startswith("pupitre://")]
    return roles[0] if len(roles) == 1 else ""


def ensure_ticket_key(settings: Settings) -> Ed25519PrivateKey:
    """The key with which the portal signs tickets, made if there is none (mode 0600)."""
    folder = directory(settings, "portal")
    with _lock(settings):
        if not (folder / "ticket.key").exists():
            key = Ed25519PrivateKey.generate()
            _write(folder / "ticket.key", _private_pem(key), mode=0o600)
            _write(folder / "ticket.pub", _public_pem(key))
    return load_ticket_signer(folder)


def load_ticket_signer(certificates: Path) -> Ed25519PrivateKey:
    """The ticket key in the portal's directory. Raises `SetupError`."""
    key = serialization.load_pem_private_key(_read(certificates / "ticket.key"), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise SetupError(f"{certificates / 'ticket.key'} is no Ed25519 key.", "Remove it and run `pupitre pki create`.")
    return key


def load_ticket_verifier(certificates: Path) -> Ed25519PublicKey:
    """The public half, from the directory of the gateway or of a host. Raises `SetupError`."""
    key = serialization.load_pem_public_key(_read(certificates / "ticket.pub"))
    if not isinstance(key, Ed25519PublicKey):
        raise SetupError(f"{certificates / 'ticket.pub'} is no Ed25519 key.", "Remove it and run `pupitre pki create`.")
    return key


def load_certificate(path: Path) -> x509.Certificate:
    """The certificate in a PEM file. Raises `SetupError`."""
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as error:
        raise SetupError(f"{path} is no certificate.", "Remove it and run `pupitre pki create`.") from error


def _names(settings: Settings, role: str, addresses: Collection[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(f"pupitre://{role}"),
        x509.RFC822Name(nats_user(role)),
    ]
    if role.startswith("host-"):
        names.append(x509.DNSName(host_dns_name(role.removeprefix("host-"))))
        own = [settings.host_address] if role == host_role(settings.host_name) else []
        names += _addresses([*own, *addresses])
    if role == "nats":
        configured = [urlsplit(url.strip()).hostname or "" for url in settings.nats_url.split(",")]
        names += _addresses(["localhost", "127.0.0.1", "::1", *filter(None, configured)])
    return names


def _addresses(texts: Iterable[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for text in dict.fromkeys(texts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(text)))
        except ValueError:
            names.append(x509.DNSName(text))
    return names


def _is_current(folder: Path, role: str, wanted: list[x509.GeneralName]) -> bool:
    files = [folder / "ca.crt", folder / f"{role}.crt", folder / f"{role}.key"]
    if role == "gateway" or role.startswith("host-"):
        files.append(folder / "ticket.pub")
    if not all(path.exists() for path in files):
        return False
    certificate = load_certificate(folder / f"{role}.crt")
    born, dies = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if datetime.datetime.now(datetime.UTC) >= born + (dies - born) * RENEW_AFTER:
        return False
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(wanted) <= set(names)


def _authority_changed(settings: Settings, folder: Path) -> bool:
    """Whether this machine's authority or ticket key is another one than ``folder`` was made with."""
    originals = [(settings.pki_dir / "ca" / "ca.crt", folder / "ca.crt")]
    if (folder / "ticket.pub").exists():
        originals.append((directory(settings, "portal") / "ticket.pub", folder / "ticket.pub"))
    return any(ours.exists() and ours.read_bytes() != theirs.read_bytes() for ours, theirs in originals)


def _create_authority(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Pupitre authority")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM))
    _write(folder / "ca.key", _private_pem(key), mode=0o600)


def _issue(authority: Path, target: Path, role: str, names: list[x509.GeneralName]) -> None:
    issuer = load_certificate(authority / "ca.crt")
    issuer_key = serialization.load_pem_private_key(_read(authority / "ca.key"), password=None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, role)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + CERTIFICATE_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(_BOTH if role == "nats" or role.startswith("host-") else _CLIENT), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    _write(target / f"{role}.key", _private_pem(key), mode=0o600)
    _write(target / f"{role}.crt", certificate.public_bytes(serialization.Encoding.PEM))
    _write(target / "ca.crt", _read(authority / "ca.crt"))


def _key_usage(*, authority: bool) -> x509.KeyUsage:
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


def _private_pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public_pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}.", "Run `pupitre pki create`.") from error


def _write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Put a whole file in place or none; a key is never readable by others, not even for a moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


@contextmanager
def _lock(settings: Settings) -> Iterator[None]:
    """Two processes that start at once must not make two authorities."""
    settings.pki_dir.mkdir(parents=True, exist_ok=True)
    with open(settings.pki_dir / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
