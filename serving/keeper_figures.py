"""What a keeper tells beside its report: figures that are others at every look.

They are no news: nobody is woken for them, and they travel with whatever report is sent (the controller asks again
after 10 s at the latest).
"""

from collections.abc import Callable, Mapping
from typing import Any

from serving.exposition import version
from serving.host_watch import HostWatch


def figures(
    machine: str,
    slots: Mapping[int, object],
    watches: Mapping[int, HostWatch],
    spent_s: Callable[[int], tuple[float, float] | None],
    gpus: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """`spent_s`: by slot, seconds of CPU of its host's processes and of all else on its CPUs. Any thread.

    A host's `restarts` are its incarnation less one: all starts in this slot but the first.
    """
    replicas = []
    for slot in sorted(slots):
        watch, spent = watches.get(slot), spent_s(slot)
        told: dict[str, Any] = {"name": f"{machine}/{slot}"}
        if watch is not None and watch.record is not None:
            told["restarts"] = max(0, watch.record.incarnation - 1)
        if spent is not None:
            told |= {"cpu_s": round(spent[0], 2), "foreign_cpu_s": round(spent[1], 2)}
        replicas.append(told)
    return {
        "version": version(),
        "replicas": replicas,
        "gpus": {uuid: dict(now) for uuid, now in gpus.items()},
    }
