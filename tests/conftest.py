"""Which tests go together where `make test` runs two at a time: those of a file, and all that start whole homeports."""

import pytest


@pytest.hookimpl(tryfirst=True)  # xdist's own comes after it
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.parent.name
        item.add_marker(pytest.mark.xdist_group(folder if folder == "e2e" else item.path.stem))
