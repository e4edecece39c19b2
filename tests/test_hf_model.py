"""A model's folder as Hugging Face has it: what is read of it, and what is refused."""

import json
from pathlib import Path

import pytest

from serving.engine import LoadError, PromptError, PromptTooLong
from serving.hf_config import NotServed, read_config
from serving.hf_folder import digest, lacking
from serving.hf_model import HfModel
from tests.hf_folders import CONFIG, make_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "model")


def test_a_conversation_is_rendered_and_its_special_tokens_are_read(folder: Path) -> None:
    model = HfModel(folder)
    assert model.format is not None
    text = model.format.render([{"role": "user", "content": "hi"}])
    tokens = model.tokenize(text, 1000, begin=False, special=True)
    assert tokens[0] == 258
    assert model.detokenize(tokens) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_special_tokens_name_in_a_persons_text_is_text(folder: Path) -> None:
    model = HfModel(folder)
    tokens = model.tokenize("<|im_end|>", 1000, begin=True, special=False)
    assert 257 not in tokens
    assert model.detokenize(tokens) == "<|im_end|>"


@pytest.mark.parametrize("text", ["a", "ä", "日本", "🙂", "a\n\tb", "\x00"])
def test_pieces_are_the_bytes_of_the_text(folder: Path, text: str) -> None:
    model = HfModel(folder)
    tokens = model.tokenize(text, 1000, begin=True, special=True)
    assert b"".join(map(model.piece, tokens)) == text.encode()


def test_a_special_token_stands_for_no_text(folder: Path) -> None:
    model = HfModel(folder)
    assert model.piece(257) == b"<|im_end|>"
    (letter,) = model.tokenize("a", 1000, begin=False, special=False)
    assert (model.plain(257), model.plain(letter)) == (b"", b"a")


def test_pieces_of_a_vocabulary_of_text_are_its_text(folder: Path) -> None:
    told = json.loads((folder / "tokenizer.json").read_text())
    told["decoder"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    told["pre_tokenizer"] = None
    told["model"]["vocab"] = {"é": 0, "▁a": 1, "<0x0A>": 2}
    (folder / "tokenizer.json").write_text(json.dumps(told))
    model = HfModel(folder)
    assert [model.piece(token) for token in (0, 1, 2)] == ["é".encode(), b" a", b"\n"]


def test_a_prompt_is_never_cut(folder: Path) -> None:
    told = json.loads((folder / "tokenizer.json").read_text())
    told["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(told))
    assert len(HfModel(folder).tokenize("abcdefgh", 1000, begin=False, special=True)) == 8


def test_what_cannot_fit_is_not_tokenized(folder: Path) -> None:
    model = HfModel(folder)
    with pytest.raises(PromptTooLong) as refused:
        model.tokenize("x" * 10_000, 100, begin=True, special=True)
    assert refused.value.at_least >= 100


def test_a_token_that_there_is_none_of_is_named(folder: Path) -> None:
    with pytest.raises(PromptError, match="no token 999"):
        HfModel(folder).detokenize([1, 999])


def test_the_ends_are_the_models_and_the_tokenizers(tmp_path: Path) -> None:
    assert HfModel(make_folder(tmp_path / "one")).ends == (257,)
    assert HfModel(make_folder(tmp_path / "two", eos_token_id=256)).ends == (256, 257)
    model = make_folder(tmp_path / "three")
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 256]}))
    assert HfModel(model).ends == (257, 256)


def test_a_base_model_has_no_format(tmp_path: Path) -> None:
    assert HfModel(make_folder(tmp_path / "base", template=None)).format is None


def test_a_named_template_replaces_its_own(folder: Path, tmp_path: Path) -> None:
    named = tmp_path / "mine.jinja"
    named.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    model = HfModel(folder, template=named)
    assert model.format is not None
    assert model.format.render([{"role": "user", "content": "hi"}]) == "[hi]"


def test_a_broken_template_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"options\.chat_template"):
        HfModel(make_folder(tmp_path / "broken", template="{% for %}"))


def test_settings_that_are_no_json_are_named(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(LoadError, match="cannot be read as a model"):
        HfModel(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_what_a_folder_lacks_is_said(folder: Path, file: str) -> None:
    (folder / file).unlink()
    assert lacking(folder) == f"it has no {file}"
    with pytest.raises(LoadError):
        HfModel(folder)


def test_folders_without_weights_and_no_folders(folder: Path, tmp_path: Path) -> None:
    assert lacking(folder) is None
    assert lacking(folder / "config.json") == "it is no folder"
    assert lacking(tmp_path / "nowhere") == "it does not exist"
    (folder / "model.safetensors").unlink()
    assert lacking(folder) == "it has no weights (*.safetensors)"


def test_the_digest_is_of_the_content(folder: Path, tmp_path: Path) -> None:
    same = make_folder(tmp_path / "elsewhere" / "same")
    assert digest(folder) == digest(same)
    (same / "model.safetensors").write_bytes(bytes((1 << 20) - 1) + b"x")
    assert digest(folder) != digest(same)


def test_sizes_are_worked_out_in_the_type_that_is_served() -> None:
    read = read_config(CONFIG, {}, 1000)
    assert (read.kv_bytes_per_token, read.weight_bytes) == (2 * 2 * 2 * 16 * 2, 1000)
    assert read_config({**CONFIG, "dtype": "float32"}, {}, 1000).weight_bytes == 500
    assert read_config(CONFIG, {}, 1000, "float32").weight_bytes == 2000
    assert read_config(CONFIG, {}, 1000, "float32").kv_bytes_per_token == 2 * read.kv_bytes_per_token
    assert read_config({**CONFIG, "head_dim": 32}, {}, 1).kv_bytes_per_token == 2 * read.kv_bytes_per_token


def test_what_is_no_text_model_is_refused() -> None:
    with pytest.raises(NotServed, match="num_hidden_layers"):
        read_config({"architectures": ["Whisper"]}, {}, 1)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ('{"architectures": 5}', "architectures is no list"),
        ('{"architectures": {"a": 1}}', "architectures is no list"),
        (json.dumps({"architectures": ["a" * 10**6 + "BertModel"]}), "name of its architecture is too long"),
        ('{"text_config": [1]}', "text_config is no object"),
        ('{"hidden_size": 1e999}', "hidden_size is not a whole number from 1"),
        ('{"hidden_size": "64"}', "hidden_size is not a number"),
        ('{"hidden_size": 2}', "hidden_size is less than num_attention_heads"),
        ('{"hidden_size": null}', "hidden_size is missing"),
        ('{"num_hidden_layers": -2}', "num_hidden_layers is not a whole number from 1"),
        ('{"num_hidden_layers": 1.5}', "num_hidden_layers is not a whole number from 1"),
        ('{"num_hidden_layers": true}', "num_hidden_layers is not a number"),
        ('{"num_key_value_heads": [1, 2]}', "num_key_value_heads is not a number"),
        ('{"head_dim": -1}', "head_dim is not a whole number from 1"),
    ],
)
def test_an_odd_config_is_refused_in_words(odd: str, words: str) -> None:
    with pytest.raises(NotServed, match="does not describe a decoder-only text model") as refused:
        read_config({**CONFIG, **json.loads(odd)}, {}, 1)
    assert words in str(refused.value)


def test_a_beginning_that_is_no_token_is_none() -> None:
    assert read_config({**CONFIG, "bos_token_id": [1]}, {}, 1).begin is None
