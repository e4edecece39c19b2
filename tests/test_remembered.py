"""serving/remembered.py: it forgets the oldest, and only when it must."""

from serving.remembered import REMEMBERED, Remembered


def test_what_was_added_last_is_remembered_and_no_more_than_the_limit() -> None:
    remembered = Remembered()
    for number in range(REMEMBERED):
        remembered.add(str(number))
    remembered.add("0")
    remembered.add("new")
    assert len(remembered) == REMEMBERED == 10_000
    assert "0" in remembered
    assert "new" in remembered
    assert "1" not in remembered
    assert None not in remembered


def test_what_is_discarded_is_no_longer_remembered() -> None:
    remembered = Remembered()
    remembered.add("ann")
    remembered.discard("ann")
    remembered.discard("ben")
    assert "ann" not in remembered
