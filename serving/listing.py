"""Which machines were on Ray's list and are no longer: they serve on, and take no new sessions. On the head's disk.

Ends nothing: taking a machine off the list does not say that its sessions may be lost.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import yaml

from cluster.paths import Paths, read_json, write_private
from serving.joining import Known

FILE_BYTES_MAX = 1 << 20

log = logging.getLogger(__name__)


class Listing:
    """Machines by their ids, with the address under which the list had each. Without a list nobody is off it."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._path = paths.revision.with_name("listed.json")
        kept = read_json(self._path)
        self.listed = {str(id_): str(at) for id_, at in kept.items()} if isinstance(kept, dict) else {}
        self.off: frozenset[str] = frozenset()
        """Ids of those that were on the list."""
        self._content: bytes | None = None
        self._told: frozenset[str] | None = None
        """What that content says."""

    def look(self, known: Mapping[str, Known]) -> bool:
        """Read the list anew, and compare it with where machines are. Whether others are off it than before."""
        addresses, before = self._addresses(), (dict(self.listed), self.off)
        if addresses is None:
            self.off = frozenset()
        else:
            here = {id_: each.address for id_, each in known.items() if each.address}
            self.listed = {id_: at for id_, at in self.listed.items() if id_ in known}
            self.listed |= {id_: at for id_, at in here.items() if at in addresses}
            self.off = off_the_list(self.listed, here, addresses)
        if self.listed != before[0]:
            self._write()
        return self.off != before[1]

    def keep(self, name: str, known: Mapping[str, Known]) -> None:
        """A person keeps the machine of that name, list or not: from now on it is one that joined by hand."""
        for id_, each in known.items():
            if each.name == name and id_ in self.off:
                del self.listed[id_]
                self.off -= {id_}
                self._write()

    def _write(self) -> None:
        try:
            write_private(self._path, json.dumps(self.listed, indent=1))
        except OSError as error:
            log.warning("%s is not written: %s", self._path, error)

    def _addresses(self) -> frozenset[str] | None:
        """Those of the list, the head's too; None where there is none that can be read."""
        try:
            list_ = Path(self._paths.machine_list.read_text().strip())
            with list_.open("rb") as file:
                content = file.read(FILE_BYTES_MAX)
        except (OSError, UnicodeDecodeError):
            return None
        if content != self._content:  # reading YAML takes a hundred times as long as reading the file
            self._content, self._told = content, addresses_of(content)
        return self._told


def addresses_of(content: bytes) -> frozenset[str] | None:
    """Those that Ray's list names, the head's too; None where it is none."""
    try:
        provider = yaml.safe_load(content)["provider"]
        return frozenset({str(provider["head_ip"]), *map(str, provider.get("worker_ips") or ())})
    except (
        yaml.YAMLError,
        UnicodeDecodeError,
        RecursionError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ):
        return None


def off_the_list(
    listed: Mapping[str, str], here: Mapping[str, str], addresses: frozenset[str]
) -> frozenset[str]:
    """Of those that were listed, each under an address, those of which the list has neither that nor where they are."""
    return frozenset(
        id_ for id_, at in listed.items() if at not in addresses and here.get(id_, at) not in addresses
    )
