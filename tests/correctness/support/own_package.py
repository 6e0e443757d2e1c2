"""A package of a user's own with a scheme: int8 codes, and ways to break.

It is text, written where a test wants it: a package that is not part of this one.
"""

from pathlib import Path

NAME = "made_up_scheme"
CONFIG = f"{NAME}.weights:CodesConfig"
_WEIGHTS = """\
import torch
import torch.nn.functional as F
from dataclasses import dataclass
from enum import Enum
from torch import nn
from torchao.core.config import AOBaseConfig
from torchao.quantization.transform_module import register_quantize_module_handler
from torchao.utils import TorchAOBaseTensor

class Rounding(Enum):
    NEAREST = "nearest"
    DOWN = "down"

class Codes(TorchAOBaseTensor):
    tensor_data_names = ["codes", "scale"]
    tensor_attribute_names = ["breaks"]

    def __new__(cls, codes, scale, breaks):
        return torch.Tensor._make_wrapper_subclass(
            cls, codes.shape, dtype=scale.dtype, device=codes.device
        )

    def __init__(self, codes, scale, breaks):
        self.codes, self.scale, self.breaks = codes, scale, breaks

    def dequantize(self):
        return self.codes.to(self.scale.dtype) * self.scale

def multiplied(x, weight):
    if weight.breaks == "forward":
        raise ValueError("no kernel for it\\nand a second line")
    if weight.breaks == "values":
        x = x.flip(-1)
    return F.linear(x, weight.dequantize())

@Codes.implements(torch.ops.aten.linear.default)
@Codes.implements_torch_function(F.linear)
def _linear(func, types, args, kwargs):
    return multiplied(args[0], args[1])

@dataclass
class CodesConfig(AOBaseConfig):
    bits: int = 8
    breaks: str = ""
    rounding: Rounding = Rounding.NEAREST

    def __post_init__(self):
        if self.bits > 8:
            raise ValueError(f"{self.bits} bits do not fit a byte")

@register_quantize_module_handler(CodesConfig)
def quantized(module, config):
    if config.breaks == "handler":
        raise ArithmeticError("no scale")
    if config.breaks == "exit":
        raise SystemExit(0)
    if config.breaks == "package":
        import a_package_that_is_nowhere
    if config.breaks == "name":
        from torch import a_name_that_is_nowhere
    if config.breaks == "nothing":
        return module
    if config.breaks == "swap":
        return nn.Sequential(module)
    weight, top = module.weight.detach(), 2 ** (config.bits - 1) - 1
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-9) / top
    scaled = weight / scale
    down = config.rounding is Rounding.DOWN
    codes = (scaled.floor() if down else scaled.round()).to(torch.int8)
    packed = Codes(codes, scale, config.breaks)
    module.weight = nn.Parameter(packed, requires_grad=False)
    return module

class UnregisteredConfig(AOBaseConfig):
    pass
"""
_BROKEN = """\
def read():
    return open("/nowhere/at/all")
read()
"""


def write_package(folder: Path) -> Path:
    """Write it into a folder, which is to be on the path of modules."""
    package = folder / NAME
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "weights.py").write_text(_WEIGHTS, encoding="utf-8")
    (package / "broken.py").write_text(_BROKEN, encoding="utf-8")
    return folder
