"""What a machine keeps on disk to speak TLS: its key, its certificate, whom it trusts; on the head the CA itself.

Keys never leave the machine that made them. Imports cryptography, but only once something is made.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import tls
from cluster.paths import Paths, read_json, write_private

if TYPE_CHECKING:
    from cluster.certificates import Authority


def is_on(paths: Paths) -> bool:
    """Whether this machine's part of the cluster speaks TLS, as `machine.json` says."""
    return bool((read_json(paths.machine) or {}).get("tls"))


def is_due(paths: Paths, now: float) -> bool:
    """Whether this machine needs another certificate than it has: that one ends soon, or is missing or broken."""
    from cluster.certificates import is_due as ends_soon

    return is_on(paths) and ends_soon(_text(paths.certificate), now)


def own_files(paths: Paths) -> tls.Files:
    return tls.Files(paths.certificate, paths.key)


def authority(paths: Paths, now: float) -> "Authority":
    """The CA of the cluster whose head this is, made where there is none yet. Raises OSError, ValueError (broken)."""
    from cluster.certificates import Authority, new_authority

    kept = read_json(paths.authority)
    if kept is not None:
        return Authority(str(kept["key"]), str(kept["certificate"]))
    made = new_authority(now)
    paths.make()
    write_private(paths.authority, json.dumps({"key": made.key, "certificate": made.certificate}))
    return made


def certify(paths: Paths, csr: str, machine: str, address: str, now: float) -> str:
    """On the head: a certificate for the machine of this id, at this address. Raises OSError, and ValueError for a
    request that is none."""
    from cluster.certificates import BadRequest, issue

    try:
        return issue(authority(paths, now), csr, machine, address, now)
    except BadRequest as error:
        raise ValueError(str(error)) from None


def certify_head(paths: Paths, machine: str, address: str, now: float) -> None:
    """Give the head, of this id and address, a certificate of its own CA. Raises OSError."""
    certificate = certify(paths, request(paths, machine), machine, address, now)
    keep(paths, certificate, authority(paths, now).certificate)


def request(paths: Paths, machine: str) -> str:
    """What this machine, of this id, asks a certificate with (CSR, PEM). Its key is made where there is none."""
    from cluster.certificates import new_key, new_request

    paths.tls.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not paths.key.exists():
        write_private(paths.key, new_key())
    return new_request(paths.key.read_text(), machine)


def keep(paths: Paths, certificate: str, ca: str) -> None:
    """Write down what this machine shows, and whom it trusts. Raises OSError."""
    paths.tls.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file, text in ((paths.ca, ca), (paths.certificate, certificate)):
        if _text(file) != text:
            write_private(file, text)


def pinned(paths: Paths, token: str, *, speaks_tls: bool, now: float) -> str:
    """A token as a machine needs it that joins this head. Raises OSError."""
    return tls.with_fingerprint(token, authority(paths, now).certificate) if speaks_tls else token


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
