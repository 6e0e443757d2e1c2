"""How close a row's logits are to those of the model before it was quantized.

The reference runs operator by operator in float32 over the text that the value check
observed, with the weights as they were read, one layer after another, and no KV cache.
So the figure has all that the row rounds: weights, activations, its cache, its dtype.
"""

import torch
from torch import Tensor
from torch.func import functional_call

from llama_perf.llama.layers import rotary
from llama_perf.measure.prepare import PreparedRow
from llama_perf.measure.value_check import SEQUENCES, Observed, signal_to_noise_db


@torch.no_grad()
def closeness_db(prepared: PreparedRow, observed: Observed) -> float | None:
    """The signal to noise of what was observed, over all its positions together.

    None where the unquantized weights are not at hand, and for a row with positions
    that were filled before, which the reference would have to read as well.
    """
    weights, model = prepared.unquantized, prepared.engine.architecture
    if weights is None or prepared.engine.filled:
        return None
    text, places = (part[:SEQUENCES] for part in observed.text())
    positions = torch.arange(text.shape[1], device=text.device)
    embedding = weights.embedding().float()
    layers = map(weights.layer, range(model.config.n_layers))

    def run_unquantized(block: torch.nn.Module, *arguments: object) -> Tensor:
        layer = {name: weight.float() for name, weight in next(layers).items()}
        out: Tensor = functional_call(block, layer, arguments)
        return out

    x = model.hidden(
        text,
        positions,
        run_block=run_unquantized,
        started=(embedding[text], rotary(model.frequencies(), positions)),
    )
    final = {name: weight.float() for name, weight in weights.final().items()}
    x = x.gather(1, places[:, :, None].expand(-1, -1, x.shape[2]))
    norm = {"weight": final["norm.weight"]}
    normed: Tensor = functional_call(model.norm, norm, (x,))
    wanted = normed @ final.get("output.weight", embedding).T
    return round(signal_to_noise_db(wanted, observed.logits[:SEQUENCES].float()), 1)
