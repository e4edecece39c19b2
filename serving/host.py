"""The process that is a replica: `python -m serving.host SPEC.json`, already confined to its slice.

Reads what to serve, loads the engine beside a server that answers from the first moment, and ends in time
when told to. Confines nothing, takes no locks, restarts nothing; what requests mean is host_app.py's matter.

Exit codes: 0 told to stop; 78 model or spec cannot be served, starting again will not help; 1 anything else.
"""

import asyncio
import hashlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from cluster import network, tls
from cluster.confine import YIELD_SIGNAL, adopt_locks, cap_file
from cluster.slices import Slice
from cluster.sockets import recover_soon
from cluster.vllm_env import vllm_env
from serving.engine import Engine
from serving.gguf import GgufError, read_head
from serving.host_app import About, HostApp, build_app
from serving.host_memory import MemoryWatch, start_time
from serving.journal import Journal, JournalFull
from serving.llama_options import EngineOptions
from serving.model import EngineName, ModelSpec
from serving.trouble import report_callback
from serving.vllm_options import VllmOptions


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an end may take. `park_s`: contexts are written for so long; the rest is for freeing the engine.
    `exit_s`: by then the process ends, whatever the engine does."""

    park_s: float
    exit_s: float


STOP = Patience(2.2, 2.7)
YIELD = Patience(3.5, 4.0)
"""The machine's person wants it back within 5 s."""
CLOSE_STREAMS_S = 1
HOUSEKEEPING_S = 30.0
STDERR_BYTES = 1 * 2**20
KEEP_ALIVE_S = 75
"""Longer than a router keeps an idle connection, so that none is closed under a request."""
LOAD_FAILED = 78
VLLM_LOG = "vllm.log"


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
    shown: tls.Files | None = None
    """What the machine shows of itself; None: plain HTTP, alone on loopback or in a network declared private."""


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
        shown=_files(data.get("tls")),
    )


def _files(told: Mapping[str, str] | None) -> tls.Files | None:
    return None if told is None else tls.Files(Path(told["certificate"]), Path(told["key"]))


def llama_engine(spec: HostSpec) -> Engine:
    """The engine of a `llama.cpp` model: as many threads as the slice has cores."""
    from serving.llama_engine import LlamaEngine

    model = spec.model
    return LlamaEngine(
        spec.model_path,
        model.context,
        model.sessions,
        max(1, len(spec.slice.cores)),
        options=EngineOptions.from_options(dict(model.options)),
        memory_bytes=spec.slice.memory_bytes,
    )


def vllm_engine(spec: HostSpec) -> Engine:
    """The engine of a `vllm` model. When vLLM ends or hangs this host ends too, and whoever started it starts it
    anew."""
    from serving.vllm_engine import VllmEngine

    model = spec.model
    options = VllmOptions.from_options(dict(model.options))

    def died(reason: str) -> None:
        _say(0, f"the engine is gone: {reason}")
        os.kill(os.getpid(), signal.SIGTERM)

    return VllmEngine(
        vllm_env(os.environ, "cuda" if spec.slice.gpus else "cpu").python
        if options.python is None
        else Path(options.python),
        spec.model_path,
        model.context,
        model.sessions,
        spec.slice,
        options=options,
        log=spec.folder / VLLM_LOG,
        on_death=died,
    )


def script_engine(spec: HostSpec) -> Engine:
    """The engine of a `script` model."""
    from serving.script_engine import ScriptEngine

    return ScriptEngine(spec.model_path, spec.model.context, spec.model.sessions)


ENGINES: Mapping[EngineName, Callable[[HostSpec], Engine]] = {
    "llama.cpp": llama_engine,
    "vllm": vllm_engine,
    "script": script_engine,
}


def engine_of(spec: HostSpec) -> Engine:
    """The engine that the model asks for."""
    return ENGINES[spec.model.engine](spec)


def fingerprint(spec: HostSpec, layout: str) -> str:
    """64 hex digits for all that a saved context is bound to: the model's file, its adapters, and `layout`."""
    options = EngineOptions.from_options(dict(spec.model.options))
    files = [_digest_of(path) for path in (spec.model_path, *map(Path, options.lora))]
    return hashlib.sha256(json.dumps([layout, *files]).encode()).hexdigest()


def _digest_of(path: Path) -> str:
    try:
        return read_head(path).digest
    except GgufError:
        # No file of llama.cpp's, yet the engine took it.
        return str(path)


def run_host(
    spec_path: Path, env: MutableMapping[str, str], make_engine: Callable[[HostSpec], Engine] = engine_of
) -> int:
    """Serve until a signal or a failed load; returns the exit code, having said on stderr why it is not 0.

    On the socket that the launcher handed down, if it did; else on one of its own.
    """
    try:
        spec = read_spec(spec_path)
        token = spec.token_file.read_text().strip()
        if not token:
            raise ValueError(f"{spec.token_file} is empty")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return _say(LOAD_FAILED, f"load failed: the spec {spec_path} cannot be used: {error}")
    try:
        shown = None if spec.shown is None else tls.ServerTls(spec.shown)
    except OSError as error:
        file = spec.shown.certificate if spec.shown else ""
        reason = f"the machine's certificate {file} cannot be used ({error})"
        remedy = "`homeport join HEAD` here makes another one; on the head, `homeport down` and `homeport up`"
        return _say(LOAD_FAILED, f"load failed: {reason}; {remedy}")
    try:
        journal = Journal(spec.folder / "journal.sqlite")
    except JournalFull as error:
        return _say(1, str(error))
    if journal.warning:
        _say(0, journal.warning)
    try:
        listener = network.adopt_listener(env) or recover_soon(network.listen(spec.address, spec.port))
    except OSError as error:
        journal.close()
        reason = f"cannot listen on {spec.address}:{spec.port} ({error.strerror}); end what listens there"
        return _say(1, reason)
    engine = make_engine(spec)
    watch = MemoryWatch(spec.slice.memory_bytes)
    host = _Host(listener, (spec.folder / "host.err", spec.folder / VLLM_LOG), watch, shown)
    about = About(
        replica=spec.replica,
        machine=spec.machine,
        slot=spec.slot,
        model=spec.model,
        incarnation=int(env.get("HOMEPORT_INCARNATION", "0")),
        config_digest=spec.config_digest,
        start_time=start_time(),
        folder=spec.folder,
    )
    app = build_app(engine, about, journal, token, watch, partial(fingerprint, spec), host.load_failed)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(host.serve(app, engine))
    finally:
        app.close()
        journal.close()


class _Host:
    """One life of the process: load, serve, stop. `serve` is called once."""

    def __init__(
        self, listener: socket.socket, logs: Sequence[Path], watch: MemoryWatch, shown: tls.ServerTls | None
    ) -> None:
        self._listener = listener
        self._shown = shown
        self._logs = logs
        self._watch = watch
        self._code = 0
        self._patience = STOP

    async def serve(self, app: HostApp, engine: Engine) -> int:
        self._app = app
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(report_callback)
        self._stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, 0)
        loop.add_signal_handler(YIELD_SIGNAL, self._stop, 0, YIELD)
        server = _Server(app, self._stopping, self._shown)
        serving = asyncio.create_task(server.serve(sockets=[self._listener]))
        housekeeping = asyncio.create_task(self._keep_house())
        app.load()
        await asyncio.wait(
            {serving, asyncio.create_task(self._stopping.wait())}, return_when="FIRST_COMPLETED"
        )
        housekeeping.cancel()
        parking = asyncio.create_task(app.park(loop.time() + self._patience.park_s))
        await serving
        if lost := await parking:
            _say(0, f"stopped with the newest contexts of {lost} sessions not on disk: there was no time")
        if app.loaded:
            await asyncio.to_thread(engine.close)
        return self._code

    def load_failed(self, reason: str, permanent: bool) -> None:
        """Say so and begin to end: with 78 if another start would not help. Called on the loop."""
        if self._stopping.is_set():
            return
        code = LOAD_FAILED if permanent else 1
        _say(code, f"load failed: {reason}" if permanent else f"the engine broke while loading: {reason}")
        self._stop(code)

    def _stop(self, code: int, patience: Patience = STOP) -> None:
        """Begin to end. Called on the loop; again is nothing."""
        if self._stopping.is_set():
            return
        self._code, self._patience = code, patience
        hard_exit = threading.Timer(patience.exit_s, os._exit, (code or 1,))
        hard_exit.daemon = True
        hard_exit.start()
        self._app.stop()
        self._stopping.set()

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            for log in self._logs:
                cap_file(log, STDERR_BYTES)
            await asyncio.to_thread(self._watch.look)
            if warning := self._watch.check():
                _say(0, warning)
            if self._shown is not None:
                self._renew(self._shown)

    def _renew(self, shown: tls.ServerTls) -> None:
        """Show the certificate that the machine got when it joined last."""
        try:
            shown.renew()
        except OSError as error:
            _say(0, f"the machine's new certificate cannot be used ({error}); the former one is shown on")


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers and without its ten wakes a second."""

    def __init__(self, app: HostApp, stopping: asyncio.Event, shown: tls.ServerTls | None) -> None:
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
                ssl_context_factory=tls.for_uvicorn(None if shown is None else shown.context),
            )
        )
        self._stopping = stopping

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        await self._stopping.wait()


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
