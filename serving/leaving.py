"""Has every machine but the head end its part, as `homeport down --all` wants. Ends nothing itself."""

import asyncio
import logging
from collections.abc import Collection, Mapping
from typing import Any

from serving.joining import Known
from serving.membership import AWAY, Members

log = logging.getLogger(__name__)


async def leave_all(
    members: Members | None,
    here: Collection[str],
    head: str,
    known: Mapping[str, Known],
    reports: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """`left` and `away`: by name, who does and who could not be asked; `hosts`: of those that do, where hosts listen.

    `here`: ids of the machines that are there; `known` and `reports`, by id.
    """
    names = {id_: each.name for id_, each in known.items() if id_ != head}
    names |= {id_: report["name"] for id_, report in reports.items() if id_ != head}
    asked = [id_ for id_ in names if members is not None and id_ in here]
    answers = await asyncio.gather(*(_leaves(members, id_) for id_ in asked if members is not None))
    left = [id_ for id_, leaves in zip(asked, answers, strict=True) if leaves]
    hosts = {
        names[id_]: [f"{r['address']}:{r['port']}" for r in reports.get(id_, {}).get("replicas", ())]
        for id_ in left
    }
    away = sorted(names[id_] for id_ in names if id_ not in left)
    return {"left": sorted(hosts), "away": away, "hosts": hosts}


async def _leaves(members: Members, machine: str) -> bool:
    try:
        await members.leave(machine)
    except AWAY as error:
        log.warning("machine %s cannot be asked to leave: %s", machine, error)
        return False
    return True
