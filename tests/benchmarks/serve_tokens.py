"""Images a second of one engine that serves 16 clients of a GPT, with mixed lengths of what they ask for and mixed
settings, against the same net answering one request after the other. No HTTP on either side.

    python -m tests.benchmarks.serve_tokens

Where transformers is installed (the extra `text`), also against its own `generate` on equal weights, which answer the
same (transformers_peer.py): all that waits is one batch, if its setting is the same. Requests are unguided there, since
`generate` guides by a second forward of its own; with mixed settings and, as suits whole batches best, with one.
"""

from __future__ import annotations

import importlib.util

from components.threads import in_passing
from tests.benchmarks.common import as_a_worker, emit
from tests.benchmarks.token_clients import CLIENTS, Bench, sampler


def main(argv: list[str] | None = None) -> None:
    as_a_worker()
    made = in_passing(sampler)  # so that no side meets another one's team of threads
    bench = Bench(made, made.calls)
    alone = in_passing(bench.one_by_one)
    rate, rows, taken = bench.together()
    emit(
        "serve_tokens",
        round(rate / alone, 2),
        f"images/s of one engine with {CLIENTS} clients / of one request after the other",
        ">= 3",
        images_per_s=round(rate, 2),
        one_by_one=round(alone, 2),
        rows_per_forward=round(rows, 1),
        cache_mib=round(taken / 2**20, 1),
    )
    if importlib.util.find_spec("transformers") is None:
        print("serve_tokens_vs_generate: left out, transformers is not installed")
        return
    told = bench.against_generate()
    what = (
        f"images/s of one engine with {CLIENTS} clients / of transformers' generate in batches, equal weights, unguided"
    )
    emit("serve_tokens_vs_generate", told["mixed_ratio"], what, ">= 1.5", **told)


if __name__ == "__main__":
    main()
