"""A layer in five kernels, for a few tokens at once.

    norm + QKV + rotary + cache write; attention; output + residual;
    norm + gate/up + SiLU; down + residual

Three more run around the layers: embedding + angles; norm + head; the next token. They
replace the modules of this room, over the same weights and caches, for up to eight
tokens: a decode step or a short prompt. Activations are rounded only where they are
stored, so the logits agree with the modules' up to rounding. Of several ranks the two
products with a residual are summed over the ranks first. Imports Triton.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from llama_perf.devices.all_reduce import sum_over_ranks
from llama_perf.errors import NotRunnable
from llama_perf.kernels.packing import LANES
from llama_perf.kernels.triton import launch_fused
from llama_perf.kernels.triton.launch_attention import split_attention
from llama_perf.kernels.triton.launch_sampling import SamplingKernel, start
from llama_perf.kernels.weight import Packed
from llama_perf.llama.attention import KVCache, Place, attend_filled
from llama_perf.llama.decode_step import ChooseToken
from llama_perf.llama.fused_weights import check_batch, packed, packed_blocks
from llama_perf.llama.layers import RMSNorm, Rotary
from llama_perf.llama.options import Sampling
from llama_perf.llama.transformer import Transformer, TransformerBlock
from llama_perf.rows.spec import FUSED_TOKENS

# In Triton's interpreter weights are on the CPU, in the layout it prefers.
_CUDA = torch.device("cuda")
# Rows of the peaks that gate and up clear; see `FusedStep`.
_FOLLOWING, _ATTENDED = 2, 3


class FusedStep:
    """Runs the blocks and the head of `model`, whose weights it shares.

    Raises NotRunnable, which names the device, the batch, the width of heads or the
    weight that has no fused kernel.
    """

    def __init__(self, model: Transformer, *, batch_size: int = 1) -> None:
        config = model.config
        check_batch(batch_size)
        if config.head_dim % LANES:
            heads = f"heads are {config.head_dim} wide"
            raise NotRunnable(f"fused: {heads}; allowed: multiples of {LANES}")
        if config.output_bias or config.mlp_bias:
            biases = "biases of other linears than queries, keys and values"
            raise NotRunnable(f"fused: {biases} have no fused kernel on CUDA")
        self._dtype, self._ranks = model.dtype, config.ranks
        self._output = packed(model.output.weight, "output.weight", _CUDA)
        # Of each block the linears, and the weight of the norm in front of the next
        # block or the head, where that rounds its input by the peaks.
        self._layers: dict[nn.Module, tuple[list[Packed], Tensor | None]] = {}
        rounds = self._rounds
        norm_weight = model.norm.weight if rounds(self._output) else None
        for index, block, weights in packed_blocks(model, _CUDA):
            wqkv, _, gate, up, _ = weights
            if gate.kind != up.kind:
                name = f"layers.{index}.feed_forward.w1"
                raise NotRunnable(f"fused: {name} and w3 are quantized in two ways")
            self._layers[block] = weights, norm_weight
            norm_weight = block.attention_norm.weight if rounds(wqkv) else None
        self._first_norm_weight = norm_weight
        rows = max(self._output.rows, *(rows for rows, _ in config.linears.values()))
        # The largest activation of each token, as `project` writes it: the inputs of
        # gate and up, of down, of the product after a block or the embedding, and of
        # the attention's output.
        self._peaks = torch.zeros((4, 8), dtype=torch.int32, device=model.device)
        self._heads = {block: _heads(block) for block in self._layers}
        # By them a layer without RoPE rotates nothing: cosines 1, sines 0.
        sines = torch.zeros(FUSED_TOKENS, config.head_dim // 2, device=model.device)
        unrotated = [model.layers[layer] for layer in config.nope_layers]
        self._still = dict.fromkeys(unrotated, (sines + 1, sines))
        self._peaked: Tensor | None = None
        # Each kernel leaves the counters 0, and no two kernels run at once.
        self._split_counter = self._peaks.new_zeros(-(-rows // LANES))

    def _rounds(self, weight: Packed) -> bool:
        """Whether its product reads the peaks of its input, by which it rounds that.

        Of several ranks none does: a peak of a sum is known behind the sum alone.
        """
        return self._ranks == 1 and weight.on_tensor_cores(self._dtype)

    def start(
        self, model: Transformer, tokens: Tensor, positions: Tensor
    ) -> tuple[Tensor, Rotary, Tensor]:
        """Hidden states of `tokens`, their rotation, and the visible positions, int64.

        The last counts, for each of `positions`, those up to it.
        """
        norm_weight = self._first_norm_weight
        inputs = (tokens, positions, model.tok_embeddings.weight, model.frequencies())
        peaks = None if norm_weight is None else self._peaks[_FOLLOWING]
        started = start(*inputs, norm_weight=norm_weight, peaks_out=peaks)
        self._peaked = None if norm_weight is None else started[0]
        return started

    def token_chooser(self, sampling: Sampling) -> ChooseToken | None:
        """Choose the next token by one kernel, which draws from `DecodeState.seed`.

        None for a large `top_k`, which has no kernel.
        """
        kernel = SamplingKernel(temperature=sampling.temperature, top_k=sampling.top_k)
        vocabulary = self._output.rows * self._ranks
        return kernel if kernel.launch(vocabulary, self._dtype) else None

    def layers(
        self, model: Transformer, x: Tensor, caches: Sequence[KVCache], place: Place
    ) -> Tensor | None:
        """All layers of a step at once: None, they run one by one, by `block`."""
        del model, x, caches, place
        return None

    def block(
        self, block: TransformerBlock, x: Tensor, cache: KVCache, place: Place
    ) -> Tensor:
        """As `TransformerBlock.forward`, but updates `x`, (B, T, dim), in place.

        B * T is at most eight, and `place.visible` has `filled` or `end`.
        """
        (wqkv, wo, gate, up, down), next_norm_weight = self._layers[block]
        hidden, visible = x.view(-1, x.shape[2]), place.visible
        gated_peak = self._peaks[0] if self._rounds(gate) else None
        down_peak = self._peaks[1] if self._rounds(down) else None
        attended_peak = None
        q = launch_fused.project_heads(
            x,
            wqkv,
            self._split_counter,
            heads=self._heads[block],
            place=(self._still.get(block, place.rotary), place.positions),
            cache=cache.tensors,
            # Only for this very tensor: other chunks of a prompt have other peaks.
            peaks_in=self._peaks[_FOLLOWING] if self._peaked is x else None,
        )
        if visible.filled is None:
            y = attend_filled(q, cache, visible)
        else:
            attended_peak = self._peaks[_ATTENDED] if self._rounds(wo) else None
            y = split_attention(
                q,
                cache.tensors,
                cache.split_counter,
                visible.filled,
                window=cache.window,
                prefetch=wo.codes,
                peaks_out=attended_peak,
            )
        self._add(
            y.reshape(len(hidden), -1),
            wo,
            hidden,
            launch_fused.Peaks(
                read=attended_peak,
                written=gated_peak,
                cleared=down_peak,
                next_norm_weight=block.ffn_norm.weight,
            ),
        )
        # The peaks that nothing reads any more.
        left = _FOLLOWING if next_norm_weight is not None else _ATTENDED
        cleared = self._peaks[left : _ATTENDED + self._rounds(wo)]
        gated = launch_fused.project(
            hidden,
            [gate, up],
            self._split_counter,
            norm=_norm(block.ffn_norm),
            peaks=launch_fused.Peaks(
                read=gated_peak,
                written=down_peak,
                cleared=cleared if len(cleared) else None,
            ),
        )
        following = None if next_norm_weight is None else self._peaks[_FOLLOWING]
        self._add(
            gated,
            down,
            hidden,
            launch_fused.Peaks(
                read=down_peak,
                written=following,
                cleared=gated_peak,
                next_norm_weight=next_norm_weight,
            ),
        )
        self._peaked = None if following is None else x
        return x

    def _add(
        self, x: Tensor, weight: Packed, hidden: Tensor, peaks: launch_fused.Peaks
    ) -> None:
        """Add the product of `x` to `hidden`, the sum of all ranks' products."""
        project = partial(launch_fused.project, x, [weight], self._split_counter)
        if self._ranks == 1:
            project(residual=hidden, peaks=peaks)
        else:
            hidden += sum_over_ranks(project())

    def head(self, model: Transformer, x: Tensor) -> Tensor:
        """Logits (B, V) of hidden states (B, dim), as `Transformer.head`."""
        peaked, self._peaked = self._peaked, None
        norm, peaks = _norm(model.norm), launch_fused.NO_PEAKS
        # The peaks are those of `x` only after one token. The last tokens of a longer
        # text are other rows.
        one_token = peaked is not None and peaked.shape[1] == 1
        if peaked is not None and one_token and peaked.data_ptr() == x.data_ptr():
            peaks = launch_fused.Peaks(read=self._peaks[_FOLLOWING])
        return model.gathered(
            launch_fused.project(
                x, [self._output], self._split_counter, norm=norm, peaks=peaks
            )
        )


def _heads(block: nn.Module) -> launch_fused.Heads:
    assert isinstance(block, TransformerBlock), "a layer"
    own, norm = block.attention, _norm(block.attention_norm)
    if own.q_norm is None or own.k_norm is None:
        return launch_fused.Heads(norm=norm, bias=own.wqkv.bias)
    norms = {"q_norm": own.q_norm.weight, "k_norm": own.k_norm.weight}
    return launch_fused.Heads(norm=norm, bias=own.wqkv.bias, **norms)


def _norm(norm: RMSNorm) -> launch_fused.Norm:
    return launch_fused.Norm(weight=norm.weight, eps=norm.eps)
