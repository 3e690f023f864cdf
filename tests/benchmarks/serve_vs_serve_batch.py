"""Images a second of the engine against diffusers pipeline calls on `@serve.batch`, on the same weights.

As serve_vs_per_request, with the other peer. python -m tests.benchmarks.serve_vs_serve_batch
"""

from __future__ import annotations

from tests.benchmarks.serve_vs_per_request import compare
from tests.benchmarks.serving_peers import Batched


def main() -> None:
    compare("serve_vs_serve_batch", Batched, ">= 2")


if __name__ == "__main__":
    main()
