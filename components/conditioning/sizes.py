"""What a net is told of an image's size and of what is cropped off (Podell et al. 2024, section 2.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from components.data.crops import CROP, RAW_SIZE
from components.data.dataset import Batch
from components.data.info import DataInfo
from components.errors import DataError

_MIRRORED = [0, 3, 2, 1]  # of top, left, bottom, right


def told_sizes(batch: Batch, flips: bool) -> tuple[Tensor, Tensor]:
    """(B, 2) height and width of each row's file, and (B, 2) pixels that are cut off at the top and left of the image
    as it was resized, float32 both. `flips`: whether half of the rows are seen mirrored, whose left was their right."""
    cut = batch.columns[CROP]
    if flips:
        cut = torch.where(batch.mirrored[:, None], cut[:, _MIRRORED], cut)
    return batch.columns[RAW_SIZE].float(), cut[:, :2].float()


def refuse_without_crops(name: str, data: DataInfo) -> None:
    """Raises DataError, naming the family, of a data set that crops cannot be taken from."""
    if not data.crops:
        found = "images alone" if data.autoencoder is None else "latents of whole images"
        wanted = "data.crops" if data.autoencoder is None else "data.crops, and crops in the block of encode"
        raise DataError(f"{name}: model.crops needs crops to train on; expected {wanted} in params.yaml, found {found}")
