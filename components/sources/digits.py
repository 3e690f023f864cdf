"""The 1,797 real handwritten digits that scikit-learn carries (UCI "Optical Recognition of Handwritten Digits", test
part; Alpaydin and Kaynak 1998): 8x8 pixels, 17 grey levels."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from PIL import Image

from components.sources import DataConfig, Row, Source, image_row, split_rank

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_LEVELS = 16  # pixels are counts 0..16


def read(config: DataConfig, seed: int) -> Source:
    """Light strokes on a dark ground; every class gives the same fraction of its images to the test split."""
    from sklearn.datasets import load_digits  # a second of imports, which every stage would pay

    found = load_digits()
    pixels = np.rint(found.images * (255 / _LEVELS)).astype(np.uint8)
    labels = found.target.astype(np.int64)
    in_test = stratified(labels, seed, config.test_fraction)
    rows = functools.partial(_rows, pixels, labels, config)
    return Source(
        classes=CLASSES,
        facts={"source": "digits", "seed": seed, "test_fraction": config.test_fraction},
        splits={
            "train": functools.partial(rows, np.flatnonzero(~in_test)),
            "test": functools.partial(rows, np.flatnonzero(in_test)),
        },
    )


def stratified(labels: np.ndarray, seed: int, fraction: float) -> np.ndarray:
    """Which rows are held out: labels (N,) -> bool (N,), in each class the nearest whole number to `fraction` of it,
    but at least one row on either side of the split."""
    ranks = np.array([split_rank(seed, row) for row in range(len(labels))])
    in_test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        held_out = min(max(1, round(len(members) * fraction)), len(members) - 1)
        in_test[members[np.argsort(ranks[members])[:held_out]]] = True
    return in_test


def _rows(pixels: np.ndarray, labels: np.ndarray, config: DataConfig, places: np.ndarray) -> Iterator[Row]:
    for place in places:
        yield {**image_row(Image.fromarray(pixels[place]), config), "label": labels[place]}
