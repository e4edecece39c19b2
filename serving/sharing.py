"""What each machine is to serve, worked out anew only where something about it is new. Pure.

The same as `plan.shares` of all models and machines: one machine's share depends on no other machine. Keeps what it
worked out; a keeper reports every few seconds, and on a large cluster nearly always what it reported before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.fit import Wish, absent, fit_one
from cluster.machine import Machine
from serving.model import ModelSpec
from serving.plan import Shares

OF_MACHINE = ("id", "name", "zone", "hardware", "reserve")
"""What of a report a share depends on."""


@dataclass(frozen=True, slots=True)
class _Fitted:
    """One machine's share; `about` is what it was worked out from."""

    about: tuple[Any, ...]
    machine: Machine
    share: list[dict[str, Any]]
    left_out: Mapping[str, str]
    """By model."""


class Sharing:
    """One controller's."""

    def __init__(self) -> None:
        self._models: Sequence[Mapping[str, Any]] = ()
        self._wishes: list[Wish] = []
        self._fitted: dict[str, _Fitted] = {}
        """By machine, of the models of now."""

    def shares(self, models: Sequence[Mapping[str, Any]], reports: Mapping[str, Mapping[str, Any]]) -> Shares:
        """`models` as a revision has them: [{"spec", "digest"}]; `reports`: the keepers', by machine."""
        if models is not self._models:
            self._models, self._fitted = models, {}
            by_name = {model["spec"]["name"]: model for model in models}
            self._wishes = [ModelSpec.from_json(model["spec"]).wish() for model in by_name.values()]
        self._fitted = {machine: self._fit(machine, report) for machine, report in reports.items()}
        left_out = absent(self._wishes, [each.machine for each in self._fitted.values()])
        for each in self._fitted.values():
            for model, reason in each.left_out.items():
                left_out.setdefault(model, {})[each.machine.name] = reason
        return Shares({machine: each.share for machine, each in self._fitted.items()}, left_out)

    def _fit(self, id_: str, report: Mapping[str, Any]) -> _Fitted:
        about = tuple(report[key] for key in OF_MACHINE)
        known = self._fitted.get(id_)
        if known is not None and known.about == about:
            return known
        machine = Machine.from_json(report)
        counts, left_out = fit_one(self._wishes, machine)
        by_name = {model["spec"]["name"]: model for model in self._models}
        share = [
            {"model": by_name[name]["spec"], "digest": by_name[name]["digest"], "count": count}
            for name, count in counts
        ]
        return _Fitted(about, machine, share, left_out)
