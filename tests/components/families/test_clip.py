"""CLIP: what counts as the same caption, one loss however the batch is shared out, the best checkpoint, its uses in
evaluation."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from torch import distributed
from torch.testing._internal.distributed import multi_threaded_pg as threaded

from components.artifacts import run_folder
from components.conditioning.near_duplicates import NearDuplicates
from components.conditioning.text import cut_tokens_of
from components.data.media.image import MEDIUM
from components.data.permutation import share
from components.errors import ConfigError, DataError, SamplerError
from components.evaluation.extractor import clip_scorer
from components.evaluation.features import Extractors
from components.evaluation.protocol import ExtractorConfig
from components.metrics.figures import values
from components.metrics.retrieval import retrieval_figures
from components.training.worker_rows import of_all_workers
from tests.components.families.contract import PROVENANCE, trained
from tests.components.helpers import IMAGES, Rows, build, stream, tiny_data

BATCH = 7


def tokens(*texts: str) -> torch.Tensor:
    return cut_tokens_of(texts, 48)


def test_captions_that_say_the_same_are_found():
    texts = tokens(
        "waving hand: dark skin tone", "Waving hand", "hand, waving", "raised hand", "", "light bulb", "bulb"
    )
    plain = NearDuplicates().same(texts, texts)
    assert plain.diagonal().all() and torch.equal(plain, plain.T)
    assert plain.nonzero().tolist() == [[0, 0], [1, 1], [1, 2], [2, 1], [2, 2], *([row, row] for row in range(3, 7))]
    tones = NearDuplicates(without=("skin", "tone", "dark", "light")).same(texts, texts)
    assert tones[0].tolist() == [True, True, True, False, False, False, False]
    assert tones[5].tolist() == [False] * 5 + [True, True] and not tones[4, :4].any()
    half = NearDuplicates(overlap=1 / 3).same(texts[1:2], texts)
    assert half[0].tolist() == [True, True, True, True, False, False, False], "2 of 5, all, all, 1 of 3 words"


def test_retrieval_by_hand():
    texts = torch.eye(3, 4)
    images = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0, 0], [0.9, 0.5, 0, 0], [0, 0, 1, 0]]), dim=1)
    figures = values(retrieval_figures(images, texts, torch.eye(3, dtype=torch.bool)))
    assert figures["image_to_text_at_1"] == pytest.approx(2 / 3)  # the second image is nearer to the first text
    assert figures["text_to_image_at_1"] == 1 and figures["retrieval_at_5"] == 1
    assert figures["retrieval_chance"] == pytest.approx(1 / 3)
    same = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    figures = values(retrieval_figures(images, texts, same))
    assert figures["image_to_text_at_1"] == 1, "the first two texts say the same"
    assert figures["retrieval_chance"] == pytest.approx((1 / 2 + 5 / 9) / 2)
    constant = torch.nn.functional.normalize(torch.ones(3, 4), dim=1)
    assert values(retrieval_figures(constant, constant, torch.eye(3, dtype=torch.bool)))["retrieval_at_1"] == 0, (
        "embeddings that tell nothing apart find nothing"
    )


def gradient(family, batch) -> tuple[torch.Tensor, torch.Tensor]:
    net = family.nets["clip"]
    loss = family.loss(net, batch)["loss"] * batch.weight
    loss.backward()
    return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in net.parameters()])


@pytest.mark.parametrize("world", [2, 3])
def test_all_workers_rows_are_contrasted_and_gradients_are_those_of_one(world):
    whole = gradient(build("clip"), next(stream("clip", BATCH)))
    families = [build("clip") for _ in range(world)]  # before the threads: seeds are the process' own
    threaded._install_threaded_pg()
    torch._C._distributed_c10d._set_thread_isolation_mode(True)
    store, found = distributed.HashStore(), [None] * world

    def work(rank: int) -> None:
        distributed.init_process_group("threaded", rank=rank, world_size=world, store=store)
        part = next(stream("clip", BATCH, rank=rank, world=world))
        everybody, first = of_all_workers(part.draws.keys)
        found[rank] = (gradient(families[rank], part), everybody[0], first)
        distributed.destroy_process_group()

    try:
        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        torch._C._distributed_c10d._set_thread_isolation_mode(False)
        threaded._uninstall_threaded_pg()
    losses, gradients = zip(*(pair for pair, _, _ in found), strict=True)
    assert torch.allclose(torch.stack(losses).mean(), whole[0], rtol=1e-5)
    assert torch.allclose(torch.stack(gradients).mean(0), whole[1], rtol=1e-4, atol=1e-6)
    keys = next(stream("clip", BATCH)).draws.keys
    assert all(torch.equal(everybody, keys) for _, everybody, _ in found)
    assert [first for _, _, first in found] == [share(BATCH, rank, world).start for rank in range(world)]


def test_what_says_the_same_is_no_contrast():
    """Two rows of one caption: nothing is left to tell them from, so the loss is zero."""
    family, batch = build("clip"), next(stream("clip", 4))
    batch.columns["caption"][:] = batch.columns["caption"][0]
    assert family.loss(family.nets["clip"], batch)["loss"].item() == pytest.approx(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose best checkpoint is not its last."""
    family, state = trained("clip")
    average = {"clip": {key: value * 1.5 for key, value in state.average["clip"].items()}}
    best = run_folder.Best(3, "retrieval_at_1", 0.5, average)
    target = tmp_path_factory.mktemp("runs") / "clip"
    run_folder.write(target, "clip", family, state, PROVENANCE, best)
    return target


def test_its_run_is_read_at_the_best_checkpoint(folder):
    best, last = (run_folder.load(folder, checkpoint=which).family for which in (None, "last"))
    ours, theirs = best.nets["clip"].state_dict(), last.nets["clip"].state_dict()
    assert all(torch.allclose(ours[key], theirs[key] * 1.5) for key in theirs)


def test_checkpoints_have_retrieval_without_a_judge(folder):
    family, columns = run_folder.load(folder).family, Rows(tiny_data("clip")).columns
    figures = family.validate(columns, columns, None)
    assert set(figures) == set(family.checkpoint_figures)
    assert figures["retrieval_at_1_train"].value == figures["retrieval_at_1"].value


def test_evaluation_measures_by_it(folder):
    extractors = Extractors.open(ExtractorConfig(name="clip"), None, "cpu", folder)
    images = torch.rand(3, *IMAGES.shape) * 2 - 1
    found = extractors.features(images, MEDIUM)
    assert found.vectors.shape == (3, 6) and found.judged is None
    assert torch.allclose(found.vectors.norm(dim=1), torch.ones(3))
    score = clip_scorer(run_folder.load(folder))
    texts = ["a red cat", "a dog", "a red cat and much more than it takes"]
    spoken = run_folder.load(folder).family.nets["clip"].texts(cut_tokens_of(texts, 12))["pooled"]
    expected = 100 * (spoken @ found.vectors[0]).clamp(min=0)
    assert torch.allclose(score(images[[0, 0, 0]], texts).float(), expected, atol=1e-3)
    with pytest.raises(DataError, match=r"\(1, 8, 8\); the clip was trained on \(1, 16, 16\)"):
        extractors.refuse_unless_fits(folder, MEDIUM, (1, 8, 8))
    with pytest.raises(ConfigError, match="evaluate/clip: runs/"):
        Extractors.open(ExtractorConfig(name="clip"), None, "cpu")


def test_another_run_is_no_clip(folder):
    run = run_folder.load(folder)
    other = replace(run, config=run.config.model_copy(update={"family": "judge"}))
    with pytest.raises(SamplerError, match="expected a trained clip, found family 'judge'"):
        clip_scorer(other)
