"""The table of keys: whole, each with a meaning, each key explained by its path."""

import pytest
import yaml

from components.errors import ConfigError
from pipelines.params import explain, main, table
from pipelines.support.keys import sections
from tests.clones import ROOT

SHIPPED = yaml.safe_load((ROOT / "params.yaml").read_text())


def test_every_key_has_a_meaning():
    for section in sections():
        for key in section.keys:
            assert key.meaning, f"{section.title}: {key.path}: say behind its field, in a comment, what it means"


def test_the_table_holds_the_keys_of_every_block():
    told = table()
    for key in ("data.layout", "samplers.NAME.training.steps", "promote.guards.NAME.of", "cluster.num_workers"):
        assert f"| `{key}` | " in told
    for heading in ("optimizer, wherever a model has one", "judge: model", "latent_diffusion: candidates", "serve"):
        assert f"## {heading}\n" in told
    assert "model.backbone[unet].widths" in told and "model.backbone[dit].patch" in told
    rows = [line for line in told.splitlines() if line.startswith("| `")]
    assert len(rows) > 300 and all(row.count(" | ") == 3 for row in rows)


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("training.steps", ["samplers.NAME.training.steps", "whole number, at least 0; default: required"]),
        ("samplers.ldm.training.steps", ["how long it lasts", "in params.yaml: 400"]),
        ("samplers.ldm.model.backbone.widths", ["channels", "in params.yaml: [64, 128]"]),
        ("samplers.ldm.candidates.0.solver", ["dpmpp_2m", "in params.yaml: unipc"]),
        ("samplers.ldm.model.optimizer.schedule", ["default: cosine"]),  # of its family
        ("optimizer.schedule", ["optimizer.schedule\n", "default: constant"]),
        ("samplers.cgan.model.generator.betas", ["Kingma", "default: [0.5, 0.999]"]),
        ("feature_matching", ["mean over features, where Salimans et al. 2016 sum"]),
        ("schedule.zero_terminal_snr", ["Lin et al. 2024, section 3.1\n"]),  # and not what is said of the key below it
        ("judges.judge.model.feature_dim", ["numbers that describe an image"]),
        ("promote.guards.memorised.at_most", ["promote.guards.NAME.at_most", "in params.yaml: 0.1"]),
        ("kl_weight", ["model.kl_weight", "default: 0.01", "8 that of unit variance and pixels in [0, 1]"]),
        ("reconstruction", ["values, which lie in [-1, 1]"]),
    ],
)
def test_a_key_is_explained_by_its_path_or_the_end_of_it(key, told):
    found = explain(key, SHIPPED)
    assert all(part in found for part in told), found


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("training.stepz", "training.steps"), ("samplers.ldm.model.backbone.widhts", "widths"), ("x_y_z", "")],
)
def test_an_unknown_key_tells_the_nearest(key, nearest):
    with pytest.raises(ConfigError, match=f"^{key}: no such key.*{nearest}"):
        explain(key, SHIPPED)


def test_the_command(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    main(["--explain", "data.image_size"])
    assert "in params.yaml: 16" in capsys.readouterr().out
