"""What WaveNet promises: samples of the past alone, queues that equal whole forwards, lengths that are learnt along."""

from __future__ import annotations

import math

import pytest
import torch

from components.companding import CODES, codes_of, log_bin_sizes, values_of
from components.data.info import DataInfo
from components.data.media.audio import lengths
from components.errors import SamplerError
from components.families import family_class
from components.sampling.requests import Conditions, Request
from components.sampling.trajectories import drive
from tests.components.helpers import IMAGES, Rows, build, tiny_data

pytestmark = pytest.mark.usefixtures("exact")

DATA = tiny_data("wavenet")
LEVELS = 65535


@pytest.fixture(params=["mu_law", "logistics"])
def family(request):
    found = build("wavenet", samples=request.param)
    found.nets.eval()
    return found


def clips(count: int = 6) -> torch.Tensor:
    rows = Rows(DATA, count)
    return build("wavenet").medium.rows(rows.columns)


def numbers(family, rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    before = torch.cat([torch.zeros(len(rows), 1), family.kind.heard(rows)[:, 0, :-1]], 1)
    return family.nets["wavenet"](before, ids)


def test_a_sample_depends_on_those_before_it_alone(family):
    """By gradient, through what samples are heard by: their loudness."""
    net, ids = family.nets["wavenet"], torch.tensor([[1, 0]])
    for place in (0, 5, 16, 23):
        before = torch.linspace(-0.5, 0.6, 24)[None].requires_grad_()
        net(before, ids)[0, place].sum().backward()
        reached = before.grad[0].nonzero()[:, 0].tolist()
        # at `place` lies the sample before it, at 0 of the first there is none
        first = max(place - net.receptive_field + 1, 1)
        assert reached == list(range(first, place + 1)), place


def test_queues_answer_as_the_whole_net(family):
    rows, ids = clips(3), torch.tensor([[0, 0], [2, 1], [3, 2]])
    whole = numbers(family, rows, ids)
    queue, heard = family.calls["wavenet"], family.kind.heard(rows)[:, 0]
    cache, slot = queue.allocate(5), torch.tensor([4, 0, 2])
    cache.fill_(7.0)  # what others have left there
    for place in range(rows.shape[2]):
        asked = {"position": torch.full((3,), place), "before": heard[:, place - 1] if place else torch.zeros(3)}
        for _ in range(2):  # a call may be asked again
            found = queue(**asked, ids=ids, cache=cache, slot=slot)
            torch.testing.assert_close(found, whole[:, place], rtol=0, atol=1e-5)


def test_a_segment_learns_what_the_whole_clip_says(family):
    rows, ids = clips(4), torch.tensor([[0, 0], [2, 1], [3, 2], [1, 1]])
    whole, block = numbers(family, rows, ids), family.config.block
    context = -(-family.nets["wavenet"].receptive_field // block)
    heard = torch.cat([torch.zeros(4, context * block + 1), family.kind.heard(rows)[:, 0]], 1)
    for segment in range(rows.shape[2] // block):
        window = heard[:, segment * block : (segment + context + 1) * block]
        found = family.nets["wavenet"](window, ids, torch.full((4,), segment - context))[:, -block:]
        torch.testing.assert_close(found, whole[:, segment * block :][:, :block], rtol=0, atol=1e-5)


@torch.no_grad()
def test_probabilities_of_a_sample_and_of_its_ending_sum_to_one(family):
    """Over all stored values of the second sample, and the clip's having ended before it."""
    values = torch.arange(-32767, 32768)[:, None] / 32767
    told = torch.linspace(-1, 1, family.kind.num_outputs + 1).expand(len(values), 1, -1)
    second = torch.ones(len(values), 1, dtype=torch.int64)
    goes_on = family._each(told, values, second, torch.full((len(values),), 2))
    ended = family._each(told[:1], values[:1], second[:1], torch.tensor([1]))
    assert float(goes_on.double().exp().sum() + ended.double().exp().sum()) == pytest.approx(1, abs=2e-3)


@torch.no_grad()
def test_what_fills_a_row_has_no_likelihood(family):
    rows = clips(20)
    counted = family.likelihood.values_of(rows)
    assert torch.equal(counted, lengths(rows)) and len(counted.unique()) > 10
    found = family._log_probability(rows, torch.stack([torch.arange(20) % 3, torch.arange(20) % 2], 1), None)
    bits = -found / math.log(2) / counted
    assert bits.mean() == pytest.approx(16, abs=2.5), "of uniform stored values, by a net that knows nothing"


def test_clips_end_where_the_net_says_and_rows_do_not_wait_for_others():
    family = build("wavenet")
    family.nets.eval()
    head = family.nets["wavenet"].head[-1]
    with torch.no_grad():
        head.bias[-1] = 0.0
    asked = Conditions(label=torch.tensor([0, 1, 2]), speaker=torch.tensor([0, 1, 0]))
    calls = []
    request = Request(torch.arange(3), family.Settings(), asked)
    made = drive(family.trajectory(request), family.calls, on_call=calls.append)
    found = lengths(made)
    assert len(calls) < 24 and found.max() < 24, "an even chance to end at each sample"
    alone = family.sample(request.rows(slice(1, 2)))
    assert torch.equal(alone[0], made[1])
    with torch.no_grad():
        head.bias[-1] = -50.0
    assert lengths(family.sample(request)).min() > 20


def test_a_low_temperature_takes_the_likeliest_code():
    family = build("wavenet")
    numbers = torch.zeros(1, CODES).index_fill(1, torch.tensor([200]), 3.0)
    drawn = family.kind.draw(numbers, torch.tensor([[0.999]]), 0.05)
    assert codes_of(drawn).item() == 200


def test_codes_stand_for_all_stored_values_and_are_decoded_among_them():
    sizes = log_bin_sizes(torch.arange(CODES), LEVELS).exp()
    assert sizes.sum() == pytest.approx(LEVELS, rel=1e-5) and sizes.min() >= 1
    codes = torch.arange(CODES)
    assert torch.equal(codes_of(values_of(codes, LEVELS)), codes)
    stored = values_of(codes, LEVELS) * 32767
    assert (stored - stored.round()).abs().max() < 1e-2


def test_only_sound_is_taken_and_segments_are_whole_blocks():
    kind = family_class("wavenet")
    for data in (IMAGES, DataInfo(shape=(1, 5, 9, 9), medium="video")):
        with pytest.raises(SamplerError, match="^wavenet: expected clips of sound, found "):
            kind(kind.Config(), data)
    with pytest.raises(ValueError, match="segment: expected whole blocks of 128 samples"):
        kind.Config(segment=100)
