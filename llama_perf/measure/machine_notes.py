"""What a reader of this machine's figures should know of it, a line each."""

from __future__ import annotations

import torch

from llama_perf.devices.driver import ask_driver, hidden, is_wsl, visible
from llama_perf.measure.gpu_state import CardWatch


def machine_notes(device: torch.device) -> list[str]:
    """Which of several cards it is, what cannot be read of it, a silent driver, WSL."""
    lines = []
    if device.type == "cuda":
        lines += _chosen(device)
        problem = CardWatch(device).problem
        lines += [] if problem is None else [f"state of the card: {problem}"]
    elif not hidden() and (found := ask_driver()) and found.problem is not None:
        lines.append(f"no card is used: {found.problem}")
    if is_wsl():
        lines.append(
            "WSL: the driver is Windows', whose programs may use the card and the"
            " processor unseen; it may not tell power and clocks, and lets what does"
            " not fit the card spill into the machine's memory, slowly and unsaid"
        )
    return lines


def _chosen(device: torch.device) -> list[str]:
    count, chosen = torch.cuda.device_count(), visible()
    if count < 2 and chosen is None:
        return []
    given = "it is not set" if chosen is None else repr(chosen)
    properties = torch.cuda.get_device_properties(device)
    return [
        f"rows run on {properties.name}, {properties.uuid}, the first of {count} by"
        f" CUDA_VISIBLE_DEVICES ({given})"
    ]
