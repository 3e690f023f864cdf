import itertools

import numpy as np
import pytest

from components import sources
from components.sources import DataConfig


class TestDigits:
    def test_each_class_gives_the_same_fraction_to_the_test_split(self):
        source = sources.read(DataConfig(image_size=8), seed=0)
        labels = {split: [int(row["label"]) for row in rows()] for split, rows in source.splits.items()}
        train, test = (np.bincount(labels[split], minlength=10) for split in ("train", "test"))
        assert (train + test).sum() == 1797
        assert np.abs(test - 0.2 * (train + test)).max() <= 0.5
        assert len(source.classes) == 10

    def test_the_seed_draws_the_split_and_equal_seeds_draw_equal_ones(self):
        firsts = []
        for seed in (0, 0, 1):
            rows = sources.read(DataConfig(image_size=8), seed).splits["test"]()
            firsts.append(np.stack([row["image"] for row in itertools.islice(rows, 20)]))
        assert np.array_equal(firsts[0], firsts[1]) and not np.array_equal(firsts[0], firsts[2])

    @pytest.mark.parametrize("channels", [1, 3])
    def test_images_have_the_size_asked_for_and_the_full_range(self, channels):
        source = sources.read(DataConfig(image_size=16, channels=channels), seed=0)
        images = np.stack([row["image"] for row in itertools.islice(source.splits["train"](), 50)])
        assert images.shape == (50, channels, 16, 16) and images.dtype == np.uint8
        assert images.min() == 0 and images.max() == 255
        assert np.ptp(images, axis=1).max() == 0  # grey: equal channels
