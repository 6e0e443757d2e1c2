"""The order of the rows of queries and keys: in halves of a head, or interleaved.

RoPE rotates pairs of a head's rows. Meta's files, and llama.cpp's of some models, have
the two rows of a pair side by side, 2i and 2i + 1, as the model here. Hugging Face's
have them half a head apart, i and i + head_dim / 2. Biases of queries and keys and the
norms of their heads are in the order of the rows.
"""

from torch import Tensor

PARTS = ("attention.wq", "attention.wk", "attention.q_norm", "attention.k_norm")
"""What is in this order, by Meta's names without `.weight` or `.bias`."""


def interleaved(halves: Tensor, head_dim: int) -> Tensor:
    """Rows (heads * head_dim, ...) in halves of each head as interleaved ones."""
    heads = halves.reshape(-1, 2, head_dim // 2, *halves.shape[1:])
    return heads.transpose(1, 2).reshape(halves.shape)
