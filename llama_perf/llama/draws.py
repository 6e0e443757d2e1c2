"""What a generation draws from: a generator, a seed's, or torch's own."""

import torch

from llama_perf.devices.device import device_of
from llama_perf.devices.ranks import from_first_rank, own_rank
from llama_perf.llama.options import Sampling


class Draws:
    """Of an engine on `device`, whose model `ranks` share."""

    def __init__(self, device: torch.device, ranks: int) -> None:
        self._device, self._ranks = device, ranks
        self._last: torch.Generator | None = None

    def generator(self, sampling: Sampling) -> torch.Generator | None:
        """What `sampling` asks for; None is torch's own.

        On every rank it draws what the first one draws. To make it do so takes time. A
        generator that was the last one too draws alike already.
        """
        draws = sampling.generator
        if sampling.seed is not None:
            draws = torch.Generator(self._device).manual_seed(sampling.seed)
        if self._ranks == 1 or own_rank().count == 1 or sampling.temperature == 0:
            return draws
        if draws is None or draws is not self._last:
            own = draws or device_of(self._device).generator
            own.set_state(from_first_rank(own.get_state()))
            self._last = draws
        return draws
