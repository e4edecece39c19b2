"""The certificates of a cluster: a CA that its head makes once, and one certificate for each machine.

Keys are ECDSA on P-256. The clock is an argument; files and sockets are others' matter (cluster/machine_tls.py,
cluster/tls.py). The only file that imports cryptography, which whoever only speaks TLS does not need.
"""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS = 20 * 365
MACHINE_DAYS = 5 * 365
"""A machine gets another certificate at each join, and the head at each start."""
RENEW_DAYS = MACHINE_DAYS // 5
"""One that is valid for no longer than this is to be renewed."""
EARLIER = timedelta(days=2)
"""How far a machine's clock may be behind the head's."""
LOOPBACK = ipaddress.IPv4Address("127.0.0.1")
CA_NAME = "homeport CA"


class BadRequest(Exception):
    """What a machine sent is no request for a certificate. The message says why."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA, both parts as PEM."""

    key: str
    certificate: str


def new_key() -> str:
    """A private key, as PEM (PKCS #8)."""
    return _key_text(ec.generate_private_key(ec.SECP256R1()))


def new_authority(now: float) -> Authority:
    """A CA for machines, which signs no other CA. `now`: seconds since the epoch."""
    key = ec.generate_private_key(ec.SECP256R1())
    known_by = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    # OpenSSL finds an issuer by its name first: two CAs must differ in it.
    name = _name(f"{CA_NAME} {known_by.digest.hex()[:16]}")
    made = (
        _between(now, CA_DAYS)
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(known_by, critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(_key_text(key), made.public_bytes(Encoding.PEM).decode())


def new_request(key: str, machine: str) -> str:
    """A request (CSR) for a certificate of this key (PEM) and this machine's id, as PEM."""
    made = x509.CertificateSigningRequestBuilder().subject_name(_name(machine))
    return made.sign(_private(key), hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def issue(authority: Authority, request: str, machine: str, address: str, now: float) -> str:
    """A certificate, as PEM, for the machine of this id at this address, whatever else it asked for.

    It holds for the address and, since Ray's processes of one machine speak so with each other, for loopback; for its
    machine as a server and as a client; never for longer than its CA. Raises BadRequest.
    """
    try:
        asked = x509.load_pem_x509_csr(request.encode())
        public = asked.public_key()
        if not asked.is_signature_valid:
            raise BadRequest("its signature does not hold")
    except (ValueError, InvalidSignature, TypeError) as error:
        raise BadRequest(f"it is no request for a certificate ({type(error).__name__})") from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise BadRequest("its key is none of P-256")
    signer = x509.load_pem_x509_certificate(authority.certificate.encode())
    key = _private(authority.key)
    addresses = dict.fromkeys((ipaddress.ip_address(address), LOOPBACK))
    # A head whose clock is behind when it starts, as without a battery, makes none that has expired once it is set.
    now = max(now, (signer.not_valid_before_utc + EARLIER).timestamp())
    made = (
        _between(now, MACHINE_DAYS, signer.not_valid_after_utc)
        .subject_name(_name(machine))
        .issuer_name(signer.subject)
        .public_key(public)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName(list(map(x509.IPAddress, addresses))), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM).decode()


def is_due(certificate: str, now: float) -> bool:
    """Whether this certificate (PEM) is to be renewed: it is near its end, or none that is valid `now`."""
    try:
        held = x509.load_pem_x509_certificate(certificate.encode())
    except ValueError:
        return True
    renew_from = held.not_valid_after_utc - timedelta(days=RENEW_DAYS)
    return not held.not_valid_before_utc.timestamp() <= now < renew_from.timestamp()


def _between(now: float, days: int, end: datetime | None = None) -> x509.CertificateBuilder:
    at = datetime.fromtimestamp(now, UTC)
    until = at + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - EARLIER)
        .not_valid_after(until if end is None else min(until, end))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    """For a CA, or for a machine."""
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _private(text: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(text.encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("a key of another kind")
    return key


def _key_text(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
