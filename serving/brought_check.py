"""Whether files that were brought are a model that an engine could read at all: by their heads, without an engine."""

import json
from collections.abc import Sequence
from pathlib import Path

from serving import safetensors_layout
from serving.gguf import GgufError, read_head
from serving.gguf_layout import Short
from serving.hf_config import NotServed, read_config
from serving.hf_folder import lacking, weight_bytes
from serving.model_files import CONFIG, WEIGHTS, HubSource
from serving.model_shape import NoShape
from serving.model_trouble import Trouble

ANOTHER = "Name another file of the repository"
ANOTHER_REPO = "Name another repository"


def check_model(hub: HubSource, path: Path, names: Sequence[str]) -> None:
    """`path`: its GGUF, or its folder, of which `names` are the files that were brought: what else lies there is not
    looked at. Raises Trouble, and OSError."""
    if hub.file is not None:
        try:
            read_head(path)
        except GgufError as error:
            raise Trouble("no_model", error.message, ANOTHER) from None
        return
    if (lack := lacking(path) or _broken(path, names)) is not None:
        raise Trouble("no_model", f"what came from {hub.repo} cannot be served by vLLM: {lack}", ANOTHER_REPO)


def _broken(folder: Path, names: Sequence[str]) -> str | None:
    """What is wrong with a folder that has all that it needs; None: nothing."""
    try:
        read_config(json.loads((folder / CONFIG).read_bytes()), {}, weight_bytes(folder))
    except (ValueError, AttributeError, RecursionError) as error:
        return f"its {CONFIG} cannot be read ({error})"
    except NotServed as wrong:
        return str(wrong)
    for file in (folder / name for name in names if name.endswith(WEIGHTS)):
        with file.open("rb") as opened:
            data = opened.read(safetensors_layout.LENGTH_BYTES)
            more = int.from_bytes(data, "little")
            data += opened.read(min(more, safetensors_layout.HEADER_MAX))
        try:
            safetensors_layout.header(data)
        except NoShape as wrong:
            return f"{file.name}: {wrong.message}"
        except Short as short:
            return f"{file.name}: {short}"
        except RecursionError:
            return f"{file.name}: its header cannot be read"
    return None
