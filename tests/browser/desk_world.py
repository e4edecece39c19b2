"""What desks in tests talk to: a real router and a real controller, with hosts that are real processes.

The bundled model answers, or an engine without one, for what a model cannot be made to say.
"""

import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.browser.tab import Beside
from tests.fakes import Behaviour
from tests.host_process import HostProcess, model_spec
from tests.models import bundled_model
from tests.moving_world import Machines, World, world

MODEL = model_spec(context=2048, hold_s=1.0, queue_s=60.0)


@contextlib.contextmanager
def hosted(folder: Path, engines: Mapping[str, Behaviour | None]) -> Iterator[tuple[Beside, World]]:
    """One machine a name, in the zone `home`; without a behaviour the bundled model is there."""
    machines, beside = Machines(), Beside()
    with pytest.MonkeyPatch.context() as patch:
        try:
            for name, behaviour in engines.items():
                path = str(bundled_model()) if behaviour is None else "none"
                machines.add(name, "home", HostProcess(folder / name, MODEL, path, behaviour))
            with ThreadPoolExecutor() as at_once:
                list(at_once.map(HostProcess.start, machines.hosts.values()))
            yield beside, beside.enter(world(folder, machines, MODEL, patch))
        finally:
            beside.close()
            for host in machines.hosts.values():
                host.kill()
