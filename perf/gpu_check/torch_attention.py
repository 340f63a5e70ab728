"""Attention of equal sequences by torch, on keys and values that lie in one piece."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention


def torch_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> Callable[[], torch.Tensor]:
    """Return a call that computes causal attention of the last rows of each sequence.

    There are no blocks: this is the work that paging adds to, in the layout that suits torch.

    Args:
        query: [sequences, heads, new tokens, head_dim].
        key: [sequences, key heads, tokens, head_dim]; likewise `value`.
    """
    new, tokens = query.shape[2], key.shape[2]
    if new == 1:
        return lambda: scaled_dot_product_attention(query, key, value, enable_gqa=True)
    if new == tokens:
        return lambda: scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        )
    # The kernel behind this mask takes as many key heads as query heads.
    group = query.shape[1] // key.shape[1]
    keys, values = (x.repeat_interleave(group, dim=1) for x in (key, value))
    mask = causal_lower_right(new, tokens)
    return lambda: scaled_dot_product_attention(query, keys, values, attn_mask=mask)
