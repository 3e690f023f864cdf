"""The linear probe: how much of the classes a linear classifier reads off features that were learnt without them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from components.metrics.figures import Definition

PROBE_ACCURACY = Definition(
    name="probe_accuracy",
    label="linear probe",
    explanation="held-out images whose class a linear classifier reads off the encoder's features",
    kind="share",
    better="higher",
)


@torch.enable_grad()
def probe_accuracy(features: Tensor, labels: Tensor, held_out: Tensor, held_out_labels: Tensor) -> float:
    """The accuracy on held-out features (M, D) of logistic regression, fitted on features (N, D) with labels (N,)."""
    with torch.inference_mode(False):
        mean, std = features.double().mean(0), features.double().std(0) + 1e-6
        x, test = ((values.double() - mean) / std for values in (features, held_out))
        weight = torch.zeros(x.shape[1] + 1, int(labels.max()) + 1, dtype=torch.float64, device=x.device)
        weight.requires_grad_()
        optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")
        truth = labels.clone()

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(_linear(x, weight), truth) + 1e-4 * weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        return float((_linear(test, weight).argmax(1) == held_out_labels).double().mean())


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight[:-1] + weight[-1]
