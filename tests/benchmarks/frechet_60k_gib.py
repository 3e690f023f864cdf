"""Peak memory of a process that computes the Fréchet statistics of 60,000 x 2048 features and a distance.

python -m tests.benchmarks.frechet_60k_gib
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.common import emit
from tests.benchmarks.frechet_60k_s import measure, write_features

IN_CHILD = """
import sys
from pathlib import Path
from tests.benchmarks.frechet_60k_gib import grown
print(*grown([Path(path) for path in sys.argv[1:]]))
"""


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def grown(paths: list[Path]) -> tuple[float, float]:
    """GiB of this process before and at its peak."""
    before = peak_gib()
    measure(paths)
    return before, peak_gib()


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        paths = map(str, write_features(Path(temporary)))
        # a process that did not make the features
        done = subprocess.run([sys.executable, "-c", IN_CHILD, *paths], capture_output=True, text=True, check=True)
    before, peak = map(float, done.stdout.split())
    emit("frechet_60k_gib", round(peak, 3), "GiB at the peak", "< 1", after_imports=round(before, 3))


if __name__ == "__main__":
    main()
