"""serving/lease.py: the words for where a turn's context came from, and why it was evaluated anew."""

import pytest

from serving.engine import Began
from serving.lease import Granted, Lease
from serving.parking_plan import Missing
from serving.remembered import Remembered

ANN = "a" * 64


def lease(
    resident: bool = False,
    missing: Missing | None = None,
    warm: bool = False,
    made: bool = False,
    session: str | None = ANN,
) -> Lease:
    names = Remembered()
    if made:
        names.add(ANN)
    lease = Lease(1, session, "request", 0.0, names)
    lease.granted = Granted(0, resident)
    lease.missing = missing
    lease.warm = warm
    return lease


@pytest.mark.parametrize(
    ("given", "began", "context", "cause"),
    [
        # resident
        (lease(resident=True), Began(1, 50, 50), "resident", None),
        (lease(resident=True), Began(1, 100, 99), "resident", None),
        (lease(resident=True), Began(1, 50, 20), "resident", "edited@20"),
        (lease(resident=True), Began(1, 50, 0), "evaluated", "edited@0"),
        (lease(resident=True, warm=True), Began(1, 0, 0), "evaluated", "evicted"),
        # parked
        (lease(), Began(1, 50, 50, restored=True), "resumed", None),
        (lease(), Began(1, 50, 20, restored=True), "resumed", "edited@20"),
        (lease(warm=True), Began(1, 0, 0, restored=False), "evaluated", "restore_failed"),
        (lease(missing="restore_failed", warm=True), Began(1, 0, 0), "evaluated", "restore_failed"),
        (lease(missing="engine_changed", made=True), Began(1, 0, 0), "evaluated", "engine_changed"),
        (lease(missing="evicted"), Began(1, 0, 0), "evaluated", "evicted"),
        # neither
        (lease(missing="never_parked", warm=True, made=True), Began(1, 0, 0), "evaluated", "evicted"),
        (lease(missing="never_parked", made=True), Began(1, 0, 0), "evaluated", "new"),
        (lease(missing="never_parked"), Began(1, 0, 0), "evaluated", "engine_changed"),
        (lease(session=None), Began(1, 0, 0), "evaluated", "new"),
        (lease(made=True), None, "evaluated", "new"),
        # a prefix of another sequence
        (lease(missing="never_parked", made=True), Began(1, 0, 40, shared=40), "evaluated", "new"),
        (lease(resident=True), Began(1, 40, 40, shared=40), "evaluated", "edited@40"),
        (lease(session=None), Began(1, 0, 40, shared=40), "evaluated", "new"),
    ],
)
def test_context_and_cause(given: Lease, began: Began | None, context: str, cause: str | None) -> None:
    assert given.context(began) == context
    assert given.cause(began, prompt_tokens=100) == cause
