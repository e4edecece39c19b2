"""The order to bring one model to a machine, as the process that does it (serving/bring_model.py) is given it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from serving.model_files import Content


@dataclass(frozen=True, slots=True)
class Giver:
    """A machine that has the file. `url` is its file server's: `http://IP:PORT`, or https."""

    name: str
    url: str


@dataclass(frozen=True, slots=True)
class Order:
    """What to bring, from where."""

    source: str
    folder: str
    how: Literal["fetch", "copy"]
    content: Content | None = None
    """What the cluster knows of it already; a copy needs it."""
    givers: tuple[Giver, ...] = ()
    zone: str = ""
    token_file: str = ""
    ca_file: str = ""
    """The CA by which givers are known; empty: they speak in clear."""
    rate: int | None = None
    """Bytes a second of copies."""
    budget: int | None = None
    named: tuple[str, ...] = ()
    """Sources that are not to be removed for it."""

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "folder": self.folder,
            "how": self.how,
            "content": self.content and self.content.to_json(),
            "givers": [[giver.name, giver.url] for giver in self.givers],
            "zone": self.zone,
            "token_file": self.token_file,
            "ca_file": self.ca_file,
            "rate": self.rate,
            "budget": self.budget,
            "named": list(self.named),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Order":
        told = dict(data)
        told["content"] = Content.from_json(told["content"]) if told.get("content") else None
        told["givers"] = tuple(Giver(str(name), str(url)) for name, url in told.get("givers", ()))
        told["named"] = tuple(told.get("named", ()))
        return cls(**told)
