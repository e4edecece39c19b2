"""Which files of a repository make a model."""

import pytest

from serving.model_files import FILES_MAX, INDEX, HubSource, NoSource, folder_names, hub_source

WHOLE = ("config.json", "tokenizer.json", "model.safetensors")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def test_a_whole_repository_is_a_source() -> None:
    assert hub_source("hf:o/r") == HubSource("o/r", None)
    assert hub_source("hf:o/r@v1.0") == HubSource("o/r", None, "v1.0")
    assert hub_source("hf:o/r:m.gguf") == HubSource("o/r", "m.gguf")
    for wrong in ("hf:o/r:", "hf:o", "hf:", "hf:o/r@", "hf:../r", "hf:o/r@..", "hf:o/r/x"):
        with pytest.raises(NoSource):
            hub_source(wrong)


def test_nothing_is_taken_but_what_vllm_reads_the_weights_last() -> None:
    others = (
        *(
            ".gitattributes",
            "README.md",
            "modeling_own.py",
            "pytorch_model.bin",
            "m.gguf",
            "adapter.safetensors",
        ),
        *("consolidated.safetensors", "original/model.safetensors", "onnx/model.onnx", "training_args.bin"),
    )
    beside = ("generation_config.json", "chat_template.jinja", "tokenizer_config.json")
    names = folder_names((*others, *WHOLE, *beside), None)
    assert names == (*sorted((*beside, "config.json", "tokenizer.json")), "model.safetensors")


def test_the_index_says_which_weights_there_are() -> None:
    listed = ("config.json", "tokenizer.json", INDEX, *SHARDS, "consolidated.safetensors")
    assert folder_names(listed, set(SHARDS)) == ("config.json", INDEX, "tokenizer.json", *SHARDS)
    assert folder_names((*listed, "model.safetensors"), set(SHARDS))[-2:] == SHARDS
    assert folder_names(("config.json", "tokenizer.json", *SHARDS), None)[-2:] == SHARDS


@pytest.mark.parametrize(
    ("listed", "weights", "complaint"),
    [
        (
            ("README.md", "m-Q8_0.gguf", "m-Q4_0.gguf"),
            None,
            "which vLLM does not read. Write engine: llama.cpp and name one of its files, for example hf:OWNER/REPO:m",
        ),
        (
            ("config.json", "tokenizer.json", "pytorch_model.bin"),
            None,
            "it has no weights as *.safetensors (it has pytorch_model.bin, which may run programs). Name another",
        ),
        (("README.md",), None, "it has no weights as *.safetensors. Name another"),
        (("model_index.json", "unet/model.safetensors"), None, "it has no weights as *.safetensors"),
        (("config.json", "model.safetensors"), None, "it has no tokenizer.json"),
        (("tokenizer.json", "model.safetensors"), None, "it has no config.json"),
        ((*WHOLE, INDEX), {"a.safetensors"}, f"it lacks a.safetensors, which its {INDEX} names"),
        ((*WHOLE, "sub/a.safetensors"), {"sub/a.safetensors"}, "sub/a.safetensors is an odd name"),
        ((*WHOLE, "a.bin"), {"a.bin"}, "a.bin is an odd name"),
        (("config.json", "tokenizer.json", "m\n.safetensors"), None, "is an odd name"),
        (("config.json", "tokenizer.json", ".m.safetensors"), None, ".m.safetensors is an odd name"),
        (("config.json", "tokenizer.json", "a..safetensors"), None, "a..safetensors is an odd name"),
        ((*WHOLE, "../../evil.json"), None, "../../evil.json, which lies outside of it"),
        (
            ("config.json", "tokenizer.json", *(f"{n}.safetensors" for n in range(FILES_MAX))),
            None,
            f"its model is made of {FILES_MAX + 2} files, more than {FILES_MAX}",
        ),
        (
            (*WHOLE, INDEX),
            {f"{n}.safetensors" for n in range(FILES_MAX)},
            f"its model is made of {FILES_MAX + 3} files, more than {FILES_MAX}",
        ),
    ],
)
def test_what_makes_no_model_is_refused(
    listed: tuple[str, ...], weights: set[str] | None, complaint: str
) -> None:
    with pytest.raises(NoSource) as refused:
        folder_names(listed, weights)
    assert complaint in str(refused.value)


def test_files_that_another_machine_names_are_those_of_a_model() -> None:
    hub = HubSource("o/r", None)
    assert hub.is_made_of(WHOLE)
    assert hub.is_made_of(("config.json", "tokenizer.json", *SHARDS))
    for wrong in (
        (),
        WHOLE[:2],
        WHOLE[1:],
        (*WHOLE, WHOLE[0]),
        (*WHOLE, "../../../evil.json"),
        (*WHOLE, "../x.safetensors"),
        (*WHOLE, "/etc/x.safetensors"),
        (*WHOLE, "modeling.py"),
        (*WHOLE, "m.gguf"),
        (*WHOLE, *(f"{n}.safetensors" for n in range(FILES_MAX))),
    ):
        assert not hub.is_made_of(wrong), wrong
    file = HubSource("o/r", "m-00001-of-00002.gguf")
    assert file.is_made_of(("m-00001-of-00002.gguf", "m-00002-of-00002.gguf"))
    assert not file.is_made_of(("m-00001-of-00002.gguf",))
