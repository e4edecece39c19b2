"""Where homeport keeps its state and its locks. Names folders; reads and writes nothing but what `secret` makes."""

import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FETCHED = "models"
"""The folder of what came from Hugging Face, below the state folder."""
SOCKET_PATH_LIMIT = 40
"""Bytes that Ray's session folder may take: its socket names add about 65, and the kernel allows 107."""


@dataclass(frozen=True, slots=True)
class Paths:
    """One installation's folders. `home` holds the state of this machine; `locks` is shared machine-wide."""

    home: Path
    locks: Path

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Paths":
        """HOMEPORT_HOME and HOMEPORT_LOCKS, else the defaults of a user's state folder and of the machine."""
        home = env.get("HOMEPORT_HOME") or _default_home(env)
        locks = env.get("HOMEPORT_LOCKS") or _default_locks(env)
        return cls(Path(home).expanduser().resolve(), Path(locks).expanduser().resolve())

    @property
    def run_id(self) -> str:
        """Eight hex digits that mark this installation's processes and records."""
        return hashlib.sha256(str(self.home).encode()).hexdigest()[:8]

    @property
    def machine(self) -> Path:
        return self.home / "machine.json"

    @property
    def bench(self) -> Path:
        """What `homeport bench machine` measured here last."""
        return self.home / "bench.json"

    @property
    def joined(self) -> Path:
        """Which head this machine joined."""
        return self.home / "joined.json"

    @property
    def yielded(self) -> Path:
        """For how long its person wants this machine for themselves."""
        return self.home / "yielded.json"

    @property
    def join_token(self) -> Path:
        """With this, machines of a list join, any number of times, for as long as it lies there."""
        return self.home / "join" / "token"

    @property
    def join_tokens(self) -> Path:
        """The tokens that `homeport join-token` made, as digests."""
        return self.home / "head" / "join_tokens.json"

    @property
    def known_pins(self) -> Path:
        """What the machines' journals said last."""
        return self.home / "head" / "known.sqlite"

    @property
    def fetched(self) -> Path:
        """Models that came from Hugging Face, here or through another machine."""
        return self.home / FETCHED

    @property
    def model_orders(self) -> Path:
        """From where this machine is to get which models, as the controller said last."""
        return self.home / "models.json"

    @property
    def known_models(self) -> Path:
        """What sources on Hugging Face turned out to be, and which were asked for by `homeport pull`."""
        return self.home / "head" / "models.json"

    @property
    def slots(self) -> Path:
        return self.home / "slots.json"

    @property
    def revision(self) -> Path:
        return self.home / "head" / "revision.json"

    @property
    def router_settings(self) -> Path:
        """What the router is started with."""
        return self.home / "router.json"

    @property
    def fleet(self) -> Path:
        """The router's last picture of the machines."""
        return self.home / "router" / "fleet.json"

    @property
    def workers(self) -> Path:
        """What the processes of a router that has several share; new with each start."""
        return self.home / "router" / "workers"

    @property
    def run(self) -> Path:
        """What `homeport up` started, and how far it is."""
        return self.home / "run.json"

    @property
    def up_lock(self) -> Path:
        """Held by the parent of a running homeport for as long as it lives."""
        return self.home / "up.lock"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def cluster_token(self) -> Path:
        """Of a head: the secret of its cluster, from which the tokens of its machines are made."""
        return self.home / "secrets" / "cluster_token"

    @property
    def machine_token(self) -> Path:
        """What opens the hosts of this machine, and with which it asks its head."""
        return self.home / "secrets" / "machine_token"

    @property
    def files_token(self) -> Path:
        """What opens the machines' file servers to each other."""
        return self.home / "secrets" / "files_token"

    @property
    def former_token(self) -> Path:
        """Of a head: what every machine had before each had its own. It still lets them join anew, and no more."""
        return self.home / "secrets" / "former_token"

    @property
    def said_in_clear(self) -> Path:
        """Of a head: it is there once machines have said their tokens in a network without TLS."""
        return self.home / "secrets" / "said_in_clear"

    @property
    def spoken(self) -> tuple[Path, ...]:
        """What machines show each other: who reads along in a network without TLS knows it."""
        return (self.cluster_token, self.machine_token, self.files_token, self.former_token, self.ray_token)

    @property
    def authority(self) -> Path:
        """Of a head: the CA of its cluster, with its key."""
        return self.home / "head" / "ca.json"

    @property
    def tls(self) -> Path:
        return self.home / "tls"

    @property
    def ca(self) -> Path:
        """The certificate of the CA that this machine trusts."""
        return self.tls / "ca.pem"

    @property
    def certificate(self) -> Path:
        """This machine's own."""
        return self.tls / "machine.pem"

    @property
    def key(self) -> Path:
        """Of that certificate."""
        return self.tls / "machine.key"

    @property
    def digest_key(self) -> Path:
        return self.home / "secrets" / "digest_key"

    @property
    def ray_token(self) -> Path:
        return self.home / "secrets" / "ray_token"

    @property
    def ray_processes(self) -> Path:
        """Which session of processes Ray was started in."""
        return self.home / "ray.json"

    @property
    def ray_ports(self) -> Path:
        """Which ports Ray has on this machine."""
        return self.home / "ray-ports.json"

    @property
    def gcs(self) -> Path:
        """What Ray's head keeps of nodes and actors, so that it can come back."""
        return self.home / "head" / "gcs"

    @property
    def machine_list(self) -> Path:
        """The path of Ray's list of machines, where the head was given one."""
        return self.home / "head" / "machine_list"

    @property
    def ray_folder(self) -> Path:
        """Ray's own folder: below home, or below the temporary folder where home's name is too long for sockets."""
        below = self.home / "ray"
        if len(os.fsencode(below)) <= SOCKET_PATH_LIMIT and str(below).isascii():
            return below
        return Path(tempfile.gettempdir()) / f"homeport-{os.getuid()}-{self.run_id}"

    def replica(self, slot: int) -> Path:
        """The folder of one slot: specification, journal, stderr."""
        return self.home / "replicas" / str(slot)

    def record(self, slot: int) -> Path:
        """The host's record, beside its locks."""
        return self.locks / f"{self.run_id}-{slot}.json"

    def make(self) -> None:
        """Create the folders, for this user only. The lock folder is open to all users of the machine."""
        for folder in (self.home, self.home / "secrets", self.home / "head", self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.locks.is_dir():
            self.locks.mkdir(parents=True, exist_ok=True)
            self.locks.chmod(0o1777)


def secret(path: Path) -> str:
    """The secret in `path`, made (32 random bytes as hex, mode 0600) where it is missing."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        write_private(path, secrets.token_hex(32))
        return path.read_text().strip()


def write_private(path: Path, text: str) -> None:
    """Replace `path` whole, mode 0600: a reader sees the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def stamp(path: Path) -> tuple[int, int] | None:
    """Another one for another content of what `write_private` replaces; None where it cannot be looked at."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def read_json(path: Path) -> Any:
    """The JSON in `path`; None where it is missing or broken (it was then never written whole by us)."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _default_home(env: Mapping[str, str]) -> str:
    state = env.get("XDG_STATE_HOME") or "~/.local/state"
    return f"{state}/homeport"


def _default_locks(env: Mapping[str, str]) -> str:
    machine_wide = Path("/run/lock")
    if os.access(machine_wide / "homeport", os.W_OK) or (
        not (machine_wide / "homeport").exists() and os.access(machine_wide, os.W_OK)
    ):
        return str(machine_wide / "homeport")
    if runtime := env.get("XDG_RUNTIME_DIR"):
        return f"{runtime}/homeport-locks"
    return f"{tempfile.gettempdir()}/homeport-locks-{os.getuid()}"
