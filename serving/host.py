"""The process that is a replica: `python -m serving.host SPEC.json`, already confined to its slice.

Reads what to serve, loads the engine beside a server that answers from the first moment, and ends in time
when told to. Confines nothing, takes no locks, restarts nothing; what requests mean is host_app.py's matter.

Exit codes: 0 told to stop; 78 model or spec cannot be served, starting again will not help; 1 anything else.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from cluster.confine import adopt_locks, cap_file
from cluster.slices import Slice
from serving.engine import Engine, LoadError
from serving.host_app import About, HostApp, build_app
from serving.host_memory import MemoryWatch, start_time
from serving.journal import Journal, JournalFull
from serving.model import ModelSpec
from serving.trouble import report_callback

HARD_EXIT_S = 2.7
"""After SIGTERM the process ends by then, whatever the engine does."""
CLOSE_STREAMS_S = 1
HOUSEKEEPING_S = 30.0
STDERR_BYTES = 1 * 2**20
KEEP_ALIVE_S = 75
"""Longer than a router keeps an idle connection, so that none is closed under a request."""
LOAD_FAILED = 78
BATCH = 256
"""Tokens that one decode takes at most, unless the config says otherwise."""


@dataclass(frozen=True, slots=True)
class HostSpec:
    """What a keeper writes into SPEC.json."""

    replica: str
    machine: str
    slot: int
    address: str
    port: int
    model: ModelSpec
    model_path: Path
    token_file: Path
    folder: Path
    slice: Slice
    config_digest: str


def read_spec(path: Path) -> HostSpec:
    """Raises OSError, ValueError, KeyError or TypeError for a file that no keeper wrote."""
    data: dict[str, Any] = json.loads(path.read_bytes())
    return HostSpec(
        replica=data["replica"],
        machine=data["machine"],
        slot=int(data["slot"]),
        address=data["address"],
        port=int(data["port"]),
        model=ModelSpec.from_json(data["model"]),
        model_path=Path(data["model_path"]),
        token_file=Path(data["token_file"]),
        folder=Path(data["folder"]),
        slice=Slice.from_json(data["slice"]),
        config_digest=data["config_digest"],
    )


def llama_engine(spec: HostSpec) -> Engine:
    """The engine of a `llama.cpp` model: as many threads as the slice has cores."""
    from serving.llama_engine import LlamaEngine

    model, cores = spec.model, len(spec.slice.cores)
    batch = int(dict(model.options).get("batch", BATCH))
    return LlamaEngine(
        spec.model_path,
        model.context,
        model.sessions,
        max(1, cores),
        batch=batch,
        memory_bytes=spec.slice.memory_bytes,
    )


def run_host(
    spec_path: Path, env: Mapping[str, str], make_engine: Callable[[HostSpec], Engine] = llama_engine
) -> int:
    """Serve until a signal or a failed load; returns the exit code, having said on stderr why it is not 0."""
    try:
        spec = read_spec(spec_path)
        token = spec.token_file.read_text().strip()
        if not token:
            raise ValueError(f"{spec.token_file} is empty")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return _say(LOAD_FAILED, f"load failed: the spec {spec_path} cannot be used: {error}")
    try:
        journal = Journal(spec.folder / "journal.sqlite")
    except JournalFull as error:
        return _say(1, str(error))
    if journal.warning:
        _say(0, journal.warning)
    try:
        listener = _bind(spec.address, spec.port)
    except OSError as error:
        journal.close()
        reason = f"cannot listen on {spec.address}:{spec.port} ({error.strerror}); end what listens there"
        return _say(1, reason)
    engine = make_engine(spec)
    watch = MemoryWatch(spec.slice.memory_bytes)
    about = About(
        replica=spec.replica,
        machine=spec.machine,
        slot=spec.slot,
        model=spec.model,
        incarnation=int(env.get("HOMEPORT_INCARNATION", "0")),
        config_digest=spec.config_digest,
        start_time=start_time(),
    )
    app = build_app(engine, about, journal, token, watch.report)
    host = _Host(app, engine, listener, spec.folder / "host.err", watch)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(host.serve())
    finally:
        app.close()
        journal.close()


class _Host:
    """One life of the process: load, serve, stop. `serve` is called once."""

    def __init__(
        self, app: HostApp, engine: Engine, listener: socket.socket, errors: Path, watch: MemoryWatch
    ) -> None:
        self._app = app
        self._engine = engine
        self._listener = listener
        self._errors = errors
        self._watch = watch
        self._code = 0
        self._loaded = False

    async def serve(self) -> int:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(report_callback)
        self._stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop, 0)
        server = _Server(self._app, self._stopping)
        serving = asyncio.create_task(server.serve(sockets=[self._listener]))
        housekeeping = asyncio.create_task(self._keep_house())
        threading.Thread(target=self._load, name="load", daemon=True).start()
        await asyncio.wait(
            {serving, asyncio.create_task(self._stopping.wait())}, return_when="FIRST_COMPLETED"
        )
        housekeeping.cancel()
        await serving
        if self._loaded:
            await asyncio.to_thread(self._engine.close)
        return self._code

    def _stop(self, code: int) -> None:
        """Begin to end. Called on the loop; again is nothing."""
        if self._stopping.is_set():
            return
        self._code = code
        hard_exit = threading.Timer(HARD_EXIT_S, os._exit, (code or 1,))
        hard_exit.daemon = True
        hard_exit.start()
        self._app.stop()
        self._stopping.set()

    def _load(self) -> None:
        """On a thread of its own."""
        code, reason = LOAD_FAILED, ""
        try:
            self._engine.load(lambda share: self._call(self._app.loading, share))
        except LoadError as error:
            reason = " ".join(str(error).split())
        except Exception as error:  # noqa: BLE001 whatever it is, the process says so and ends
            code, reason = 1, f"{type(error).__name__}: {' '.join(str(error).split())}"
        if reason:
            self._call(self._fail, code, reason)
        else:
            self._call(self._ready)

    def _ready(self) -> None:
        self._loaded = True
        self._app.ready()

    def _fail(self, code: int, reason: str) -> None:
        if not self._stopping.is_set():
            _say(
                code,
                f"load failed: {reason}"
                if code == LOAD_FAILED
                else f"the engine broke while loading: {reason}",
            )
            self._app.failed(reason)
            self._stop(code)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        with suppress(RuntimeError):  # The loop is closed: the host has ended meanwhile.
            self._loop.call_soon_threadsafe(function, *args)

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            if self._errors.exists():
                cap_file(self._errors, STDERR_BYTES)
            if warning := self._watch.check():
                _say(0, warning)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers and without its ten wakes a second."""

    def __init__(self, app: HostApp, stopping: asyncio.Event) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="none",
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                date_header=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=CLOSE_STREAMS_S,
            )
        )
        self._stopping = stopping

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        await self._stopping.wait()


def _bind(address: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        # Listening at once makes a second host on this port fail here and not later.
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


def _say(code: int, text: str) -> int:
    print(f"homeport: {text}", file=sys.stderr, flush=True)
    return code


def end_process(code: int) -> None:
    """End without waiting for threads: one that still loads a model cannot be stopped in any other way."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m serving.host SPEC.json")
    adopt_locks()
    end_process(run_host(Path(sys.argv[1]), os.environ))
