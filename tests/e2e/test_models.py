"""A homeport whose model comes from Hugging Face, of which there is a stand-in over real HTTP."""

import json
import threading
from pathlib import Path

from serving.source import bundled_model
from tests.e2e.installation import Homeport, eventually
from tests.hub import add, hub

SOURCE = "hf:o/r:m.gguf"


def test_a_model_from_hugging_face_is_fetched_shown_served_and_needed_only_once(
    fresh: Homeport, tmp_path: Path
) -> None:
    fresh.count = "1"
    fresh.configure()
    fresh.config.write_text(fresh.config.read_text().replace("source: bundled", f"source: {SOURCE}"))
    size = bundled_model().stat().st_size
    with hub({"o/r/m.gguf": add(bundled_model())}) as site:
        fresh.extra = {"HF_ENDPOINT": site.url, "HF_HOME": str(tmp_path / "hf")}
        slow = site.files["o/r/m.gguf"].slow = threading.Event()
        with fresh.popen("up", "--detach", "--config", str(fresh.config)) as up:
            assert up.stdout is not None
            told = ""
            for line in up.stdout:
                told += line
                if ": fetching " in line:
                    slow.set()
        assert up.returncode == 0, told + fresh.logs()
        assert " of 93.8 MiB from hf" in told
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
        assert fresh.post_whole(body, {"x-session-id": "tea"})[0] == 200
        assert site.total == size
        (machine,) = json.loads(fresh.run("status", "--json").stdout)["machines"]
        assert machine["models"]["held"].keys() == {SOURCE}
        pulled = fresh.run("pull", "smollm2", "--json")
        assert (pulled.returncode, json.loads(pulled.stdout)["done"]) == (0, True), pulled.stderr
        missing = fresh.run("pull", "hf:o/r:nope.gguf")
        assert missing.returncode == 1
        assert "o/r has no file nope.gguf. Look at " in missing.stderr
        told = "hf:o/r:nope.gguf: o/r has no file nope.gguf"
        assert eventually(lambda: told in fresh.run("status").stdout), (
            "the router hears of it within a second"
        )
        assert fresh.run("pull", "other").returncode == 2
    assert fresh.run("down").returncode == 0
    fresh.up()
    assert fresh.post_whole(body, {"x-session-id": "tea"})[0] == 200
    assert site.total == size
