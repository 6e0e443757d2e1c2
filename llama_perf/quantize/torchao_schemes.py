"""torchao's own schemes, as torchao 0.18 spells them.

`set_inductor_config=False` throughout: torchao would set process-wide inductor flags
and never restore them; the engine sets them for every row alike instead.
"""

from functools import partial

import torch
from torchao.core.config import AOBaseConfig
from torchao.quantization import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8WeightOnlyConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    PerRow,
    PerTensor,
)
from torchao.quantization.quantize_.common import KernelPreference

from llama_perf.errors import NotRunnable
from llama_perf.quantize.registry import register
from llama_perf.rows.schemes import Scheme

INT4_CPU_GROUPS = (32, 64, 128)


_EIGHT_BITS = {
    "int8wo": partial(Int8WeightOnlyConfig, granularity=PerRow()),
    "int8dq": Int8DynamicActivationInt8WeightConfig,
    "float8wo": Float8WeightOnlyConfig,
}


@register(*_EIGHT_BITS, kernels="torchao")
def eight_bits(scheme: Scheme, *_: object) -> AOBaseConfig:
    """Weights with one scale for each output channel, int8 symmetric or float8 e4m3.

    int8dq has activations in int8 with one scale for each token.
    """
    return _EIGHT_BITS[scheme.family](set_inductor_config=False)


@register("int4wo", kernels="torchao")
def int4wo(scheme: Scheme, device: torch.device, dtype: torch.dtype) -> AOBaseConfig:
    """Weights in int4, asymmetric, a scale and a zero for each group along K."""
    options = {
        "group_size": scheme.group_size,
        "int4_choose_qparams_algorithm": "hqq" if scheme.hqq else "tinygemm",
        "set_inductor_config": False,
    }
    if device.type == "cpu":
        if scheme.group_size not in INT4_CPU_GROUPS:
            raise NotRunnable(
                f"torchao's {scheme.name} is not built on CPU; allowed there: groups of"
                f" {', '.join(map(str, INT4_CPU_GROUPS))}"
            )
        # The CPU packing left torchao's public API and lives on in its prototypes.
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return PrototypeInt4WeightOnlyConfig(**options)
    if dtype != torch.bfloat16:
        raise NotRunnable(
            f"torchao's {scheme.name} takes only bfloat16 activations on CUDA,"
            f" not {str(dtype).removeprefix('torch.')}"
        )
    return Int4WeightOnlyConfig(int4_packing_format="tile_packed_to_4d", **options)


@register("float8dq-tensor", "float8dq-row", kernels="torchao")
def float8dq(scheme: Scheme, device: torch.device, dtype: torch.dtype) -> AOBaseConfig:
    """Weights and activations in e4m3, a scale for each row and token, or tensor."""
    if device.type != "cuda":
        raise NotRunnable(f"{scheme.name} needs a CUDA card with float8 (sm_89 or up)")
    check_float8(scheme.name, device)
    if dtype == torch.float32:
        raise NotRunnable(f"{scheme.name} takes bfloat16 or float16, not float32")
    by_row = scheme.family == "float8dq-row"
    if by_row and dtype != torch.bfloat16:
        raise NotRunnable(f"{scheme.name} takes only bfloat16 activations")
    return Float8DynamicActivationFloat8WeightConfig(
        granularity=PerRow() if by_row else PerTensor(),
        kernel_preference=KernelPreference.TORCH,
        set_inductor_config=False,
    )


def check_compiled(name: str, device: torch.device) -> None:
    """Raise NotRunnable where compiled code of scheme `name` cannot run on `device`.

    Eager float8wo converts its weights by torch's own kernels, which every card has;
    compiled, Triton does, and knows e4m3 from sm_89 on.
    """
    if name == "float8wo" and device.type == "cuda":
        check_float8(f"compiled {name}", device)


def check_float8(name: str, device: torch.device) -> None:
    """Raise NotRunnable where the card has no float8."""
    if (capability := torch.cuda.get_device_capability(device)) < (8, 9):
        major, minor = capability
        raise NotRunnable(
            f"{name} needs float8 (sm_89 or up); this card is sm_{major}{minor}"
        )
