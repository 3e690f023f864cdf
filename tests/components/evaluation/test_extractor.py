"""The judge as feature extractor: whole-set features in order, its hash, and what it refuses."""

import pytest
import torch

from components.artifacts import run_folder
from components.data.info import DataInfo
from components.errors import SamplerError
from components.evaluation.extractor import extract, judge_extractor
from components.families.dcgan import Model as DCGAN
from components.families.judge import Model as Judge
from components.files import sha256
from components.training.loop import State

INFO = DataInfo(shape=(1, 8, 8), classes=("a", "b", "c"))


def write(folder, name, family):
    average = {net: family.nets[net].state_dict() for net in family.kept}
    provenance = run_folder.Provenance(data="", code="", job="", seed=0, step=1)
    run_folder.write(folder, name, family, State(1, {}, {}, average), provenance)
    return run_folder.load(folder)


@pytest.fixture
def judge(tmp_path):
    torch.manual_seed(0)
    return write(tmp_path / "judge", "judge", Judge(Judge.Config(width=8, feature_dim=6), INFO))


def test_features_and_logits_are_the_nets_own_in_order(judge):
    images = torch.rand(10, 1, 8, 8) * 2 - 1
    found = extract(judge_extractor(judge, "judge"), images.split(4))
    net = judge.family.nets["classifier"]
    assert found.vectors.shape == (10, 6) and found.vectors.dtype == torch.float64
    torch.testing.assert_close(found.vectors.float(), net.features(images))
    torch.testing.assert_close(found.logits.float(), net(images))


def test_the_hash_is_that_of_the_weights_file(judge):
    extractor = judge_extractor(judge, "referee")
    assert (extractor.name, extractor.shape) == ("referee", (1, 8, 8))
    assert extractor.weights_hash == sha256(judge.folder / "classifier.safetensors")


def test_a_generator_is_no_judge(tmp_path):
    run = write(tmp_path / "gan", "dcgan", DCGAN(DCGAN.Config(latent_dim=4, width=4), INFO))
    with pytest.raises(SamplerError, match="expected a trained judge, found family 'dcgan'"):
        judge_extractor(run, "judge")
