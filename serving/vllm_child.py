"""vLLM as a child of its host: started, watched while it loads, asked small things, ended with all that it started.

Knows nothing of turns (see vllm_engine.py), and decides neither flags nor memory (see vllm_command.py).
"""

import http.client
import json
import os
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from cluster.group_watch import Watched, start_watched
from cluster.slices import Slice
from serving.engine import LoadError
from serving.hf_model import HfModel
from serving.vllm_command import LOGGING, LOGGING_FILE, NAME, Place, command, kv_bytes, progress
from serving.vllm_options import VllmOptions

LOOK_S = 0.2
ASK_S = 5.0
TOKEN_S = 120.0
"""Its first token may take that long: kernels are made for it."""
QUIET_S = 900.0
"""While it loads, it may say nothing for so long: kernels are compiled."""
GRACE_S = 0.0
"""Asked to end, it waits for its clients for ever, and its engine is gone before (vLLM 0.32)."""
ERROR = re.compile(r"(?:\w+Error|\w*Exception): (.+)")
WORDS = 300


class VllmChild:
    """One life of vLLM. `end` it, whatever happened."""

    def __init__(self, watched: Watched, place: Place, log: Path, kv_cache_bytes: int | None) -> None:
        self.place = place
        self.kv_cache_bytes = kv_cache_bytes
        self._watched = watched
        self._log = log
        self._ending = threading.Lock()

    @classmethod
    def start(
        cls,
        python: str,
        folder: Path,
        model: HfModel,
        carved: Slice,
        context: int,
        sessions: int,
        options: VllmOptions,
        log: Path,
    ) -> "VllmChild":
        """Raises OSError, and NoRoom where the slice is too small."""
        # Of a GPU's memory vLLM finds out by itself what is left.
        kv = options.kv_memory if carved.gpus else kv_bytes(carved, model.config, context, sessions, options)
        own = Path(tempfile.mkdtemp(prefix="homeport-vllm-"))
        place = Place(
            python,
            str(folder),
            str(own / "api"),
            str(own),
            secrets.token_urlsafe(32),
            secrets.randbelow(2**31),
        )
        wanted = command(place, carved, context, sessions, options, kv, os.environ)
        try:
            (own / LOGGING_FILE).write_text(json.dumps(LOGGING))
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb", buffering=0) as out:
                return cls(start_watched(wanted.argv, wanted.env, own, out), place, log, kv)
        except BaseException:
            shutil.rmtree(own, ignore_errors=True)
            raise

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._watched.process.poll()

    def pids(self) -> list[int]:
        return self._watched.pids()

    def processes(self) -> list[psutil.Process]:
        """All that still runs of it."""
        found = []
        for pid in self.pids():
            with suppress(psutil.Error):
                found.append(psutil.Process(pid))
        return found

    def wait(self) -> int:
        return self._watched.process.wait()

    def until_ready(self, report: Callable[[float], None], closed: Callable[[], bool]) -> None:
        """Until it has made a token. Raises LoadError where it cannot be, or `closed` says so meanwhile; RuntimeError
        where another start may help."""
        share, spoke_s = 0.0, time.monotonic()
        with self._log.open("rb") as log:
            while not self._answers():
                for line in log.read().decode(errors="replace").splitlines():
                    share, spoke_s = progress(line, share), time.monotonic()
                report(share)
                if closed():
                    raise LoadError("loading was given up: the engine was closed")
                if self.code is not None:
                    # One that was killed may have wanted memory.
                    error = LoadError if self.code > 0 else RuntimeError
                    raise error(f"vLLM ended while it loaded: {self.last_words()}")
                if time.monotonic() - spoke_s > QUIET_S:
                    raise RuntimeError(f"vLLM has said nothing for {QUIET_S / 60:.0f} minutes while it loads")
                time.sleep(LOOK_S)
        body = {"model": NAME, "prompt": "a", "max_tokens": 1, "temperature": 0.0, "cache_salt": "first"}
        status, told = self.ask("POST", "/v1/completions", body, TOKEN_S)
        if status != 200:
            raise LoadError(f"vLLM makes no token: {told[:WORDS].decode(errors='replace')}")
        self._watched.settled()
        report(1.0)

    def _answers(self) -> bool:
        try:
            return self.ask("GET", "/health")[0] == 200
        except OSError:
            return False

    def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout_s: float = ASK_S
    ) -> tuple[int, bytes]:
        """Its answer: status and body. Raises OSError where it does not answer in time."""
        connection = _UnixConnection(self.place.socket, timeout_s)
        headers = {"authorization": f"Bearer {self.place.api_key}", "content-type": "application/json"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise OSError(f"vLLM's answer to {path} cannot be read: {error}") from error
        finally:
            connection.close()

    def version(self) -> str:
        try:
            return str(json.loads(self.ask("GET", "/version")[1])["version"])
        except (OSError, ValueError, KeyError):
            return "unknown"

    def last_words(self) -> str:
        """What its log says of why it ended."""
        lines = self._log.read_text(errors="replace").splitlines()[-400:]
        found = [match.group(0) for line in lines if (match := ERROR.search(line))]
        # What is raised last is "Engine core initialization failed"; the cause stands before it.
        causes = [
            words for words in found if "initialization failed" not in words and "EngineDead" not in words
        ]
        words = (causes or found or lines[-1:] or ["it printed nothing"])[-1]
        return f"{words[:WORDS]} (all of it is in {self._log})"

    def end(self) -> bool:
        """Within some seconds. Whether nothing is left of it. Safe to call twice, from any thread."""
        with self._ending:
            return self._watched.end(GRACE_S)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("vllm", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
