"""Whether prefixes of films encode and decode to prefixes to the bit, over sizes of batches, lengths and numbers of
threads; and what a frame costs.

    python -m tests.benchmarks.video_prefix
"""

from __future__ import annotations

import time

import torch

from components.nets.autoencoder.causal import CausalAutoencoder
from tests.benchmarks.common import emit

BATCHES, FRAMES, THREADS, SIDE = (1, 3, 8), 17, (1, 2), 16


def differing(net: CausalAutoencoder, batch: int) -> tuple[int, int]:
    """Values of prefixes' latents and frames that differ from the whole film's."""
    films = torch.randn(batch, 1, FRAMES, SIDE, SIDE, generator=torch.Generator().manual_seed(batch))
    mean, _ = net.encode(films)
    decoded, latents, frames = net.decode(mean), 0, 0
    for count in range(1, mean.shape[2]):
        length = 1 + net.factor * (count - 1)
        latents += int((net.encode(films[:, :, :length])[0] != mean[:, :, :count]).sum())
        frames += int((net.decode(mean[:, :, :count]) != decoded[:, :, :length]).sum())
    return latents, frames


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    net = CausalAutoencoder(1, 8, (16, 32), 1).eval()
    for parameter in net.parameters():
        if parameter.ndim == 5:
            torch.nn.init.normal_(parameter, std=0.05)
    total = [0, 0]
    for threads in THREADS:
        torch.set_num_threads(threads)
        for batch in BATCHES:
            total = [one + more for one, more in zip(total, differing(net, batch), strict=True)]
    torch.set_num_threads(1)
    films, began = torch.randn(8, 1, FRAMES, SIDE, SIDE), time.process_time()
    net.decode(net.encode(films)[0])
    seconds = time.process_time() - began
    emit(
        "video_prefix",
        sum(total),
        "values of prefixes' latents and frames that differ from the whole film's",
        "0",
        differing_latents=total[0],
        differing_frames=total[1],
        cpu_ms_a_frame=1000 * seconds / films[:, 0, :, 0, 0].numel(),
        films=sum(BATCHES) * len(THREADS),
    )


if __name__ == "__main__":
    main()
