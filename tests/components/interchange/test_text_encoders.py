"""Text encoders in folders of transformers, read into our nets: the embeddings are those that transformers gives."""

from __future__ import annotations

import shutil

import pytest
import safetensors.torch
import torch

pytest.importorskip("transformers")

from components.errors import ConfigError, SamplerError
from components.interchange.text_encoders import read
from components.nets.text_encoders import FrozenText
from tests.components.interchange import folders

TEXTS = ["a red cat", "a dog", "", "a text that is longer than there is room for"]
LENGTH = 12
MAKERS = {"clip": folders.clip, "t5": folders.t5}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of each kind."""
    root = tmp_path_factory.mktemp("encoders")
    for kind, make in MAKERS.items():
        make(root / kind)
    return root


def theirs(kind: str, folder) -> torch.Tensor:
    """By transformers alone."""
    import transformers

    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    if kind == "clip":
        net = transformers.CLIPTextModel.from_pretrained(folder).eval()
        return net(tokens["input_ids"]).last_hidden_state
    net = transformers.T5EncoderModel.from_pretrained(folder).eval()
    found = net(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
    return found * tokens["attention_mask"][:, :, None]


@pytest.mark.parametrize("kind", MAKERS)
def test_embeddings_are_those_of_transformers(kind, made):
    net = read(str(made / kind), LENGTH, "here")
    with torch.no_grad():
        expected = theirs(kind, made / kind)
    found = net.encoded(TEXTS).context
    assert found.shape == (4, LENGTH, 16) and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)  # half precision
    torch.testing.assert_close(net.nothing, found[2])
    assert (found[0] - found[1]).abs().max() > 0.05
    assert torch.equal(found, found.half().float()), "what is stored loses nothing"


@pytest.mark.parametrize("kind", MAKERS)
def test_one_file_and_a_layout_hold_all_that_a_text_needs(kind, made, tmp_path):
    net = read(str(made / kind), LENGTH, "here")
    safetensors.torch.save_file(net.state_dict(), tmp_path / "text.safetensors")
    layout = type(net.layouts[0]).model_validate_json(net.layouts[0].model_dump_json())
    again = FrozenText(layout).eval()
    again.load_state_dict(safetensors.torch.load_file(tmp_path / "text.safetensors"))
    assert torch.equal(again.encoded(TEXTS).context, net.encoded(TEXTS).context)


@pytest.mark.parametrize("kind", MAKERS)
def test_texts_that_are_cut_are_counted(kind, made):
    net = read(str(made / kind), 8, "here")
    (tokens,) = net.tokens(["a fish " * 30, "a", "", "a fish " * 31]).values()
    assert tokens[0].equal(tokens[3]), "what is cut"
    assert net.num_cut(["a fish " * 30, "a", "", "a fish " * 31]) == 2 and net.num_cut([]) == 0


def test_a_length_beyond_the_encoders_own_is_its_own(made):
    assert read(str(made / "clip"), 77, "here").layouts[0].length == 16
    assert read(str(made / "t5"), 40, "here").layouts[0].length == 40


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made / "clip", tmp_path / "clip")
    return tmp_path / "clip"


def test_a_folder_with_a_pickle_is_refused(folder):
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(SamplerError, match=r"pytorch_model\.bin: may be a pickle, .+; expected safetensors alone$"):
        read(str(folder), LENGTH, "here")


def test_what_is_missing_is_named_with_where_to_get_it(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"^here: .*/nowhere: .+; expected a folder .+ openai/clip-vit-large-patch14"):
        read(str(tmp_path / "nowhere"), LENGTH, "here")
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        SamplerError, match=r"model\.safetensors: missing; expected weights as safetensors, as in .+ hub name such as"
    ):
        read(str(folder), LENGTH, "here")
    (folder / "config.json").unlink()
    with pytest.raises(SamplerError, match=r"config\.json: missing; expected a folder that transformers saved"):
        read(str(folder), LENGTH, "here")


def test_what_is_damaged_or_another_network_is_refused(folder):
    path = folder / "model.safetensors"
    content, weights = path.read_bytes(), safetensors.torch.load_file(path)
    path.write_bytes(content[:-8])
    with pytest.raises(SamplerError, match=f"^{folder}: "):
        read(str(folder), LENGTH, "here")
    name = next(name for name in weights if name.endswith("fc1.weight"))
    safetensors.torch.save_file({key: value for key, value in weights.items() if key != name}, path, {"format": "pt"})
    with pytest.raises(SamplerError, match=r"no .*fc1\.weight in its weights"):
        read(str(folder), LENGTH, "here")
    path.write_bytes(content)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("clip_text_model", "bert"))
    with pytest.raises(SamplerError, match="a bert; expected"):
        read(str(folder), LENGTH, "here")
