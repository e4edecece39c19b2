"""Has every machine but the head end its part, as `homeport down --all` wants. Ends nothing itself."""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from serving.joining import Known
from serving.membership import AWAY, Members

log = logging.getLogger(__name__)

RETURNS_S = 25.0
"""How long one that was heard of late is asked again. Where its Ray and the head's both began anew, Ray takes its
former keeper for alive until five health checks, 3 s apart, have failed."""
AGAIN_S = 0.5


async def leave_all(
    members: Members | None,
    here: Callable[[], Collection[str]],
    late: Collection[str],
    head: str,
    known: Mapping[str, Known],
    reports: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """`left` and `away`: by name, who does and who could not be asked; `hosts`: of those that do, where hosts listen.

    `here`: ids of the machines that are there now; `late`: of those that were heard of late, or are not awaited for
    long yet; `known` and `reports`, by id. Takes RETURNS_S and an answer's time where one of `late` does not answer.
    """
    names = {id_: each.name for id_, each in known.items() if id_ != head}
    names |= {id_: report["name"] for id_, report in reports.items() if id_ != head}
    asked = [id_ for id_ in names if id_ in late or id_ in here()]
    answers = (
        []
        if members is None
        else await asyncio.gather(*(_leaves(members, here, id_, id_ in late) for id_ in asked))
    )
    left = [id_ for id_, leaves in zip(asked, answers, strict=False) if leaves]
    hosts = {
        names[id_]: [f"{r['address']}:{r['port']}" for r in reports.get(id_, {}).get("replicas", ())]
        for id_ in left
    }
    away = sorted(names[id_] for id_ in names if id_ not in left)
    return {"left": sorted(hosts), "away": away, "hosts": hosts}


async def _leaves(members: Members, here: Callable[[], Collection[str]], machine: str, is_late: bool) -> bool:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + (RETURNS_S if is_late else 0.0)
    while True:
        try:
            if machine in here():
                await members.leave(machine)
                return True
            why: object = "Ray does not count it"
        except AWAY as error:
            why = error
        if loop.time() >= deadline:
            log.warning("machine %s cannot be asked to leave: %s", machine, why)
            return False
        await asyncio.sleep(AGAIN_S)
