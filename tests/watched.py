"""What a reader of `/api/fleet?watch` makes of what it is told, and pictures to tell of."""

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from router.watching import NOTHING, Picture

Json = dict[str, Any]


def lay(old: Picture, event: str, told: Json) -> Picture:
    """The picture after an event, of which `told` are the data; the old one stays as it is."""
    if event == "fleet":
        machines = {each["name"]: each for each in told["fleet"]["machines"]}
        rest = {name: value for name, value in told["fleet"].items() if name != "machines"}
        return Picture(rest, machines, {f"{each['id']} {each['model']}": each for each in told["sessions"]})
    if event != "change":
        return old
    return Picture(
        _laid(old.rest, told["fleet"]),
        _records(old.machines, told["machines"], _machine),
        _records(old.sessions, told["sessions"], _laid),
    )


def _records(old: Any, told: Json, laid: Callable[[Json, Json], Json]) -> Json:
    new = dict(old)
    for name, differs in told.items():
        if differs is None:
            del new[name]
        else:
            new[name] = laid(old.get(name, {}), differs)
    return new


def _laid(record: Json, differs: Json) -> Json:
    made: Json = record | differs.get("set", {})
    for name in differs.get("unset", ()):
        del made[name]
    return made


def _machine(machine: Json, differs: Json) -> Json:
    before = {each["name"]: each for each in machine.get("replicas", ())}
    replicas = _records(before, differs.get("replicas", {}), _laid)
    return _laid(machine, differs) | {"replicas": [replicas[name] for name in differs.get("order", replicas)]}


values = st.none() | st.integers(0, 2) | st.lists(st.integers(0, 1), max_size=2)
fields = st.dictionaries(st.sampled_from(["state", "pins", "models"]), values)


def _named(names: Sequence[str], more: st.SearchStrategy[Json]) -> st.SearchStrategy[list[Json]]:
    """Records with `more` and a name of their own, in any order."""
    one = st.builds(lambda name, rest: {**rest, "name": name}, st.sampled_from(names), more)
    return st.lists(one, unique_by=lambda each: str(each["name"]))


def _machines() -> st.SearchStrategy[list[Json]]:
    replicas = _named(["a/0", "a/1", "a/2"], fields)
    return _named("abc", st.builds(lambda rest, its: {**rest, "replicas": its}, fields, replicas))


def _sessions() -> st.SearchStrategy[Json]:
    told = st.builds(
        lambda rest, name: {**rest, "id": name[0], "model": name[1], "machine": "a"},
        fields,
        st.tuples(st.sampled_from("pqr"), st.sampled_from("xy")),
    )
    return st.lists(told).map(lambda found: {f"{each['id']} {each['model']}": each for each in found})


pictures = st.builds(
    Picture,
    fields,
    _machines().map(lambda found: {each["name"]: each for each in found}),
    _sessions(),
) | st.just(NOTHING)
"""Any that a router could show."""
