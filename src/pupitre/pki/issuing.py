"""Certificates: one authority, one certificate directory per role, and the portal's ticket key.

A certificate directory holds ``ca.crt``, ``<role>.crt`` and ``<role>.key`` and is
all a process needs: a host on another machine is given its directory, never the
authority's key. Roles are ``nats``, ``endpoint``, ``cluster``, ``gateway``,
``portal`` and ``host-<name>``. Both sides of every link show a certificate
(TLS 1.3), and the role is read from the URI ``pupitre://<role>`` in it.
Everything here may be repeated: what is in order stays as it is. A certificate outside
its time is refused here, by every process; `pupitre.pki.credentials` renews and reloads.
"""

import datetime
import ipaddress
import re
import ssl
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pupitre.config import Settings
from pupitre.errors import SetupError
from pupitre.pki import authority, issued_certificates
from pupitre.pki.authority import key_usage, pem, private_pem, read, write

Context = TypeVar("Context", bound=ssl.SSLContext)

RENEW_AFTER = 2 / 3
"""Part of a certificate's life after which `ensure_certificate` makes a new one."""

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


def roles_here(settings: Settings) -> dict[str, Settings]:
    """The roles that have a certificate directory on this machine, each with its process's settings."""
    found = sorted(path.stem for path in settings.pki_dir.glob("*/*.crt") if path.stem == path.parent.name != "ca")
    return {
        role: settings.model_copy(update={"host_name": role.removeprefix("host-")}) if role[:5] == "host-" else settings
        for role in found
    }


def directory(settings: Settings, role: str) -> Path:
    """The certificate directory of ``role`` on this machine."""
    return settings.pki_dir / role


def ensure_authority(settings: Settings) -> Path:
    """The bundle of authorities to trust; an authority is made where there is no certificate of any yet."""
    return authority.ensure(settings)


def ensure_certificate(
    settings: Settings, role: str, target: Path | None = None, addresses: Collection[str] = ()
) -> Path:
    """The certificate directory of ``role`` with a certificate that is good for months.

    A new one is issued when there is none, when two thirds of its life are over, and
    when it lacks a name or another authority signs. ``target`` puts it elsewhere, to be
    carried to another machine; ``addresses`` are further names or IP addresses under which
    a host is reached there, which native viewers verify; without any, those of the last one stay. Raises
    `SetupError` for an unknown role, where a certificate is due but the authority's key is on another machine,
    and where the authority is missing (see `authority.ensure`).
    """
    if not _ROLE.fullmatch(role):
        raise SetupError(f"{role!r} is no role.", "Roles are nats, endpoint, cluster, gateway, portal and host-<name>.")
    target = target or directory(settings, role)
    names = _names(settings, role, addresses or issued_certificates.addresses(settings, role))
    if _is_current(settings, target, role, names):
        return target
    if not authority.is_here(settings) and (target / "ca.crt").exists():
        raise SetupError(
            f"The certificate of {role} is due for renewal, and the authority's key is not on this machine.",
            f"Run `pupitre pki issue {role} --dir DIR` where it is, and copy DIR to {target}.",
        )
    authority.ensure(settings)
    shares_ticket_key = role == "gateway" or role.startswith("host-")
    ticket = _public_pem(ensure_ticket_key(settings)) if shares_ticket_key else b""
    with authority.lock(settings):
        if not _is_signed(settings, target, role, names):
            certificate = _issue(settings, target, role, names)
            issued_certificates.note(
                settings, role, certificate, addresses, carried=target != directory(settings, role)
            )
        write(target / "ca.crt", read(authority.folder(settings) / "ca.crt"))
        if shares_ticket_key:
            write(target / "ticket.pub", ticket)
    return target


def renew_if_due(settings: Settings, role: str) -> None:
    """Renew the certificate of ``role`` where this machine can; one that is still good may wait for a person.

    Raises `SetupError` where there is none, or where it is outside its time and the authority is elsewhere.
    """
    try:
        ensure_certificate(settings, role)
    except SetupError:
        certificate = directory(settings, role) / f"{role}.crt"
        if not certificate.exists():
            raise
        check_validity(certificate, role)


def check_validity(path: Path, role: str) -> None:
    """Raises `SetupError` unless the certificate in ``path`` is good now."""
    _check_time(
        path, f"The certificate of {role}, {path},",
        f"Run `pupitre pki issue {role}` where the authority's key is; for another machine add `--dir DIR` and"
        f" copy DIR to {path.parent}.",
    )  # fmt: skip


def check_public(path: Path, key: Path) -> None:
    """Raises `SetupError` unless the certificate that browsers see belongs to ``key`` and is good now."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, key)
    except OSError as error:
        raise SetupError(
            f"The web certificate {path} cannot be used with {key}: {error}.",
            "Mend the settings tls_cert and tls_key.",
        ) from error
    _check_time(path, f"The web certificate {path}", "Renew it where it was issued; tls_cert names it.")


def _check_time(path: Path, what: str, renew: str) -> None:
    certificate = load_certificate(path)
    now = datetime.datetime.now(datetime.UTC)
    if now >= certificate.not_valid_after_utc:
        raise SetupError(f"{what} expired on {_minute(certificate.not_valid_after_utc)}.", renew)
    if now < certificate.not_valid_before_utc:
        raise SetupError(
            f"{what} is not valid before {_minute(certificate.not_valid_before_utc)}, and this machine's clock says"
            f" {_minute(now)}.",
            "Set the clock; if it is right, the clock was wrong where the certificate was issued: issue it again.",
        )


def _minute(time: datetime.datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC")


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
    """Give ``context`` the certificate of ``role`` and our rules. Raises `SetupError`, also outside its time."""
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    with authority.unchanged(certificates):
        try:
            context.load_verify_locations(certificates / "ca.crt")
            context.load_cert_chain(certificates / f"{role}.crt", certificates / f"{role}.key")
        except OSError as error:  # ssl.SSLError is one too
            raise SetupError(
                f"The certificate directory {certificates} of {role} cannot be used: {error}.",
                f"Run `pupitre pki issue {role}` and try again.",
            ) from error
        check_validity(certificates / f"{role}.crt", role)
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
    """The key with which the portal signs tickets, made where nobody has the public half of one yet (mode 0600).

    Raises `SetupError` where it is missing: hosts would refuse every ticket that another one has signed.
    """
    folder = directory(settings, "portal")
    with authority.lock(settings):
        if not (folder / "ticket.key").exists():
            if known := sorted(settings.pki_dir.glob("*/ticket.pub")):
                raise SetupError(
                    f"The key {folder / 'ticket.key'} that signs tickets is missing, and {known[0]} belongs to it.",
                    f"Bring back the folder {folder}; if it is lost, run `pupitre pki init --new-ticket-key`, after"
                    " which every host needs its certificate directory anew.",
                )
            _make_ticket_key(settings)
    return load_ticket_signer(folder)


def replace_ticket_key(settings: Settings) -> None:
    """A new ticket key in place of whatever there was; hosts that have the old public half refuse its tickets."""
    with authority.lock(settings):
        _make_ticket_key(settings)


def _make_ticket_key(settings: Settings) -> None:
    folder, key = directory(settings, "portal"), Ed25519PrivateKey.generate()
    write(folder / "ticket.key", private_pem(key), mode=0o600)
    write(folder / "ticket.pub", _public_pem(key))


def load_ticket_signer(certificates: Path) -> Ed25519PrivateKey:
    """The ticket key in the portal's directory. Raises `SetupError`."""
    key = serialization.load_pem_private_key(read(certificates / "ticket.key"), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise SetupError(f"{certificates / 'ticket.key'} is no Ed25519 key.", "Remove it and run `pupitre pki create`.")
    return key


def load_ticket_verifier(certificates: Path) -> Ed25519PublicKey:
    """The public half, from the directory of the gateway or of a host. Raises `SetupError`."""
    key = serialization.load_pem_public_key(read(certificates / "ticket.pub"))
    if not isinstance(key, Ed25519PublicKey):
        raise SetupError(f"{certificates / 'ticket.pub'} is no Ed25519 key.", "Remove it and run `pupitre pki create`.")
    return key


def load_certificate(path: Path) -> x509.Certificate:
    """The certificate in a PEM file. Raises `SetupError`."""
    return authority.load_certificates(path)[0]


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


def _is_current(settings: Settings, folder: Path, role: str, wanted: list[x509.GeneralName]) -> bool:
    """Whether all of the directory is in order, as far as this machine can know."""
    originals = {"ca.crt": authority.folder(settings) / "ca.crt"}
    if role == "gateway" or role.startswith("host-"):
        originals["ticket.pub"] = directory(settings, "portal") / "ticket.pub"
    for name, original in originals.items():
        if not (folder / name).exists():
            return False
        if original.exists() and original.read_bytes() != (folder / name).read_bytes():
            return False
    return _is_signed(settings, folder, role, wanted)


def _is_signed(settings: Settings, folder: Path, role: str, wanted: list[x509.GeneralName]) -> bool:
    """Whether the certificate has all names, is young enough, and is of the authority that signs now."""
    if not all((folder / f"{role}.{end}").exists() for end in ("crt", "key")):
        return False
    certificate = load_certificate(folder / f"{role}.crt")
    if not certificate.not_valid_before_utc <= datetime.datetime.now(datetime.UTC) < renewal_of(certificate):
        return False
    if authority.is_here(settings) and not _is_of(certificate, authority.signer(settings)[0]):
        return False
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(wanted) <= set(names)


def renewal_of(certificate: x509.Certificate) -> datetime.datetime:
    """Time at which `RENEW_AFTER` of its life is over."""
    born, dies = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return born + (dies - born) * RENEW_AFTER


def _is_of(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _issue(settings: Settings, target: Path, role: str, names: list[x509.GeneralName]) -> x509.Certificate:
    issuer, issuer_key = authority.signer(settings)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    if now >= issuer.not_valid_after_utc:
        raise SetupError(
            f"The authority expired on {_minute(issuer.not_valid_after_utc)}.",
            "Run `pupitre pki init --new-authority`; every other machine then needs new certificates.",
        )
    life = datetime.timedelta(days=settings.certificate_days)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, role)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - min(authority.CLOCK_SLACK, life / 10))
        .not_valid_after(min(now + life, issuer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(_BOTH if role == "nats" or role.startswith("host-") else _CLIENT), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    write(target / f"{role}.key", private_pem(key), mode=0o600)
    write(target / f"{role}.crt", pem(certificate))
    return certificate


def _public_pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
