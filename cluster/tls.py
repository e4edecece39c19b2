"""TLS between the machines of a cluster: who is spoken to, and how one says why that did not go well.

One setting of a cluster, `tls`, says whether its machines speak TLS; nobody falls back to plain HTTP. Servers show the
certificate of their machine, clients take only what the cluster's CA has signed for the very address that they called.
Who is let in say tokens, not certificates. Standard library only: a keeper must stay small. Certificates are made in
cluster/certificates.py, and lie where cluster/machine_tls.py puts them.
"""

import base64
import hashlib
import hmac
import http.client
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

CA_BYTES_MAX = 16384
MARK = "."
"""Between a token and the fingerprint of the CA that belongs to it."""
FINGERPRINT = 43
"""Characters of a SHA-256 in URL-safe base64."""
EXPIRED, NOT_YET_VALID = 10, 9
OTHER_ADDRESS = frozenset({62, 64})
"""OpenSSL's numbers for what is wrong with a certificate."""


@dataclass(frozen=True, slots=True)
class Files:
    """Where a machine's own certificate and its key lie, as PEM."""

    certificate: Path
    key: Path

    def to_json(self) -> dict[str, str]:
        return {"certificate": str(self.certificate), "key": str(self.key)}


class NotTrusted(Exception):
    """What answers there is not the machine that was meant, or cannot prove it. The message says why and what to do."""


@dataclass
class ServerTls:
    """What a server shows of itself. `renew` takes another certificate from the files, for connections from then on.

    Raises OSError (ssl.SSLError is one) for files that cannot be used.
    """

    files: Files
    context: ssl.SSLContext = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._seen = self._stamp()
        self.context = self._loaded()

    def renew(self) -> bool:
        """Whether there was another one. To be called from time to time."""
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._loaded()  # OpenSSL would keep the certificate of a pair that does not fit, without a key
        self.context.load_cert_chain(self.files.certificate, self.files.key)
        self._seen = stamp
        return True

    def _loaded(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.files.certificate, self.files.key)
        return context

    def _stamp(self) -> tuple[int, int]:
        told = self.files.certificate.stat()
        return told.st_ino, told.st_mtime_ns


def client_context(ca: Path) -> ssl.SSLContext:
    """For whoever calls a machine of the cluster whose CA's certificate lies there, by its address. Raises OSError."""
    return _trusting(cafile=str(ca))


def context_of(ca: str) -> ssl.SSLContext:
    """As `client_context`, for a CA's certificate as PEM. Raises ssl.SSLError for what is none."""
    return _trusting(cadata=ca)


def _trusting(cafile: str | None = None, cadata: str | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the chain and the address
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cafile=cafile, cadata=cadata)
    return context


def for_uvicorn(context: ssl.SSLContext | None) -> Callable[..., ssl.SSLContext] | None:
    """As uvicorn takes it; None: it serves plain HTTP."""
    return None if context is None else lambda *_: context


def url(address: str, port: int, tls: bool) -> str:
    """`http://…` or `https://…` of a server of ours. The one place that knows the scheme."""
    host = f"[{address}]" if ":" in address else address
    return f"{'https' if tls else 'http'}://{host}:{port}"


def connect_to(
    url: str, timeout_s: float, context: ssl.SSLContext | None = None
) -> http.client.HTTPConnection:
    """To the server of a URL, as its scheme says. `context`: whom to trust, where it is https."""
    parts = urlsplit(url)
    host = parts.hostname or "127.0.0.1"
    if parts.scheme == "https":
        return http.client.HTTPSConnection(host, parts.port, timeout=timeout_s, context=context)
    return http.client.HTTPConnection(host, parts.port, timeout=timeout_s)


def fingerprint(ca: str) -> str:
    """Of a CA's certificate (PEM): its SHA-256 in URL-safe base64. Raises ValueError for what is no PEM."""
    return _digest(_der(ca))


def with_fingerprint(token: str, ca: str) -> str:
    """A token from which a machine knows its head before it has heard of it."""
    return f"{token}{MARK}{fingerprint(ca)}"


def fingerprint_in(token: str) -> str | None:
    """The fingerprint that a token carries; None where it was made for a network that is declared private."""
    _, mark, told = token.rpartition(MARK)
    return told if mark and len(told) == FINGERPRINT else None


def fetch_ca(address: str, port: int, wanted: str, timeout_s: float) -> str:
    """The CA's certificate (PEM) of the head there, which has this fingerprint. Nothing is told to whoever answers.

    Raises NotTrusted, OSError, or http.client.HTTPException.
    """
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.minimum_version = ssl.TLSVersion.TLSv1_3
    blind.check_hostname, blind.verify_mode = (
        False,
        ssl.CERT_NONE,
    )  # the fingerprint says whether it is the one
    connection = http.client.HTTPSConnection(address, port, timeout=timeout_s, context=blind)
    told = found = ""
    try:
        connection.request("GET", "/ca")
        answer = connection.getresponse()
        der = _der(answer.read(CA_BYTES_MAX).decode("ascii"))
        # What was hashed and nothing else: behind it another certificate may stand, which would be trusted too.
        told, found = ssl.DER_cert_to_PEM_cert(der), _digest(der)
    except ValueError:
        pass  # It is no certificate.
    finally:
        connection.close()
    if not hmac.compare_digest(found, wanted):
        raise NotTrusted(
            f"What answers at {address}:{port} is not the head that this token is of: its CA is another one. See that "
            "the address is right; if the head was set up anew since, `homeport join-token` there makes another token."
        )
    return told


def speaks_tls(address: str, port: int, timeout_s: float) -> bool:
    """Whether a TLS server listens there. Nothing is told to it."""
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(address, port, timeout=timeout_s, context=blind)
    try:
        connection.connect()
    except OSError:
        return False
    finally:
        connection.close()
    return True


def why(error: BaseException, who: str) -> str | None:
    """What is wrong with the certificate of `who`, and the remedy; None where nothing of TLS was the matter."""
    if isinstance(error, ssl.SSLCertVerificationError):
        code = error.verify_code
        if code in (EXPIRED, NOT_YET_VALID):
            return (
                f"The certificate of {who} {'has expired' if code == EXPIRED else 'is not valid yet'} by the clock of "
                "this machine. Look at `date` on both; joining anew (on the head: `homeport down`, then `homeport up`) "
                "makes another certificate."
            )
        if code in OTHER_ADDRESS:
            return (
                f"The certificate of {who} is for another address. Joining anew (on the head: `homeport down`, then "
                "`homeport up`) makes one for the address of today."
            )
        return (
            f"The CA of {who} is another one than this machine knows: it was set up anew, or it belongs to another "
            "cluster. If that is meant, join anew with a new token (`homeport join-token` on the head)."
        )
    if isinstance(error, ssl.SSLError):
        return (
            f"{who} does not speak TLS as this cluster does: its network is declared private there, or something else "
            "listens. If the head's config has changed, join anew with a new token (`homeport join-token` on the head)."
        )
    return None


def _der(ca: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert(ca.strip() + "\n")


def _digest(der: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(der).digest()).decode().rstrip("=")
