"""Two protocols compare as equal, or the difference is named."""

import pytest

from components.evaluation.protocol import Protocol, ProtocolMismatch, library_versions, refuse_unless_equal

PROTOCOL = Protocol(
    extractor="judge",
    extractor_hash="aa",
    judge_hash="aa",
    resize="none",
    reference="test",
    reference_hash="bb",
    reference_count=360,
    train_hash="tt",
    row_shape=(1, 16, 16),
    num_samples=1000,
    batch_size=100,
    neighbours=5,
    neighbour_images=1000,
    resamples=200,
    seed=0,
    lpips="",
    clip_score="",
    versions={"torch": "2"},
)
CHANGED = {
    "extractor": "inception",
    "extractor_hash": "cc",
    "judge_hash": "ee",
    "resize": "bilinear to 299",
    "reference": "train",
    "reference_hash": "dd",
    "reference_count": 10,
    "train_hash": "uu",
    "row_shape": (3, 16, 16),
    "num_samples": 10,
    "batch_size": 1,
    "neighbours": 3,
    "neighbour_images": 100,
    "resamples": 20,
    "seed": 1,
    "lpips": "ff",
    "clip_score": "gg",
    "versions": {"torch": "3"},
    "likelihood_rows": 7,
    "revision": 3,
}


def test_equal_protocols_pass():
    refuse_unless_equal(PROTOCOL, PROTOCOL.model_copy())


@pytest.mark.parametrize("field", Protocol.model_fields)
def test_any_difference_is_named_with_both_values(field):
    other = PROTOCOL.model_copy(update={field: CHANGED[field]})
    with pytest.raises(ProtocolMismatch, match=f": {field} .+ against ") as caught:
        refuse_unless_equal(PROTOCOL, other)
    assert caught.value.args[0].count(" against ") == 1


def test_versions_are_those_installed():
    import torch

    assert torch.__version__.startswith(library_versions()["torch"].split("+")[0])
