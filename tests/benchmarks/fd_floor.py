"""What real images score, by how they are drawn and by what the judge has seen: the floor under every distance.

    python -m tests.benchmarks.fd_floor

500 training digits against the 359 held-out ones, 40 draws each: as many of each class, as samplers are asked for; the
classes by chance; by number of images; and, under a judge that was trained on one half of the training images, those
of that half against those of the other, which it never saw. Told: the floor under the samples' own conditions.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from components.metrics.figures import Figure, Figures
from tests.benchmarks import digits, quality
from tests.benchmarks.common import as_a_worker, emit
from tests.benchmarks.rates import Data

TOLD = (*quality.DISTANCES, "kid")
COUNTS = (200, 500, 1000)


def told(figures: Figures) -> dict[str, list[float]]:
    """Mean, lower and upper end of each figure."""
    return {name: _ends(figures[name]) for name in TOLD if name in figures}


def _ends(figure: Figure) -> list[float]:
    return [round(value, 3) for value in (figure.value, *figure.interval)]


def halves(train: Data) -> tuple[Data, Data]:
    """The training images in two, every class alike."""
    labels = train.columns["label"]
    places = torch.empty_like(labels)
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        places[members] = torch.arange(len(members)) % 2
    parts = ({name: column[places == part] for name, column in train.columns.items()} for part in (0, 1))
    one, other = (replace(train, columns=columns) for columns in parts)
    return one, other


def main() -> None:
    as_a_worker()
    train, test, yardstick = digits.data()["train"], digits.data()["test"], digits.yardstick()
    seen, unseen = halves(train)
    judge, _, _ = digits.trained("judges.judge", digits.made("judges.judge", seen, 0), seen, 0)
    half = quality.Yardstick(judge, test, digits.PROTOCOL)
    floor = yardstick.of_real(train)
    emit(
        "fd_floor",
        round(floor["frechet_distance"].value, 3),
        "Fréchet distance of 500 training images, 50 of each class, mean of 40 draws",
        "told",
        balanced={count: told(yardstick.of_real(train, count)) for count in COUNTS},
        by_chance=told(yardstick.of_real(train, balanced=False)),
        half_a_judge={"seen": told(half.of_real(seen)), "unseen": told(half.of_real(unseen))},
    )


if __name__ == "__main__":
    main()
