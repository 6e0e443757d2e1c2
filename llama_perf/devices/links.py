"""The GPUs that torch sees, and how they are linked, by NVML."""

from itertools import combinations

import torch

UNKNOWN = "unknown"


def card_links() -> str:
    """How every two of the GPUs that torch sees are linked.

    "nvlink" or "pcie"; "mixed" where some pairs have NVLink and others do not;
    "unknown" where NVML does not say.
    """
    uuids = [
        str(getattr(torch.cuda.get_device_properties(index), "uuid", None))
        for index in range(torch.cuda.device_count())
    ]
    try:
        import pynvml
    except ImportError:
        return UNKNOWN
    nvlink = pynvml.NVML_P2P_CAPS_INDEX_NVLINK
    try:
        pynvml.nvmlInit()
        cards = [pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}") for uuid in uuids]
        kinds = {
            pynvml.nvmlDeviceGetP2PStatus(*pair, nvlink) == pynvml.NVML_P2P_STATUS_OK
            for pair in combinations(cards, 2)
        }
    except pynvml.NVMLError:
        return UNKNOWN
    if not kinds:
        return UNKNOWN
    if len(kinds) > 1:
        return "mixed"
    return "nvlink" if kinds.pop() else "pcie"
