"""Random weights, made on the device that computes with them."""

from __future__ import annotations

import torch

from sarathi.models.dummy_weights import BLOCK_SIZE, RandomTensor

_PIECE = 1 << 22  # elements that are made in float32 at a time


def fill_dummy(tensor: torch.Tensor, source: RandomTensor) -> None:
    """Fill `tensor` in place with the values of `source`.

    The values are those of `source.values()`, rounded to the tensor's type. Only the block that
    they come from, 4 MB, is copied to the device. Rows beyond those of `source`, which fill up a
    vocabulary that ranks share, become zeros.

    Args:
        tensor: [rows, columns] or [elements], contiguous: a whole tensor, or some rows of one.
    """
    *rows, width = source.shape
    count = rows[0] if rows else 1
    filled = tensor[:count] if rows else tensor[:width].unsqueeze(0)
    tensor[len(filled) if rows else width :].zero_()
    if not filled.numel():
        return
    if not source.std:
        filled.fill_(source.mean)
        return
    block = torch.from_numpy(source.block).to(tensor.device)
    # Row i of this view is the part of the block that begins at element i.
    windows = block.as_strided((BLOCK_SIZE, width), (1, 1))
    starts = torch.from_numpy(source.row_starts()).to(tensor.device)
    each = max(1, _PIECE // width)
    for begin in range(0, count, each):
        piece = windows.index_select(0, starts[begin : begin + each])
        filled[begin : begin + each] = piece.mul_(source.std).add_(source.mean)
