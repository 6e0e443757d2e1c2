"""What becomes of torchao's configs as rows on a CPU: the table of own-schemes.md.

Each is a row of a small model, in the form in which a file of rows has it. The row is
in float32, and where that does not run in bfloat16.
"""

import json
import tempfile
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from llama_perf.checkpoints.config import to_hugging_face
from llama_perf.checkpoints.load import build_model
from llama_perf.checkpoints.reader import SyntheticWeights
from llama_perf.llama.config import ModelConfig
from llama_perf.results.measurement import Ceiling
from llama_perf.results.run import RowResult
from llama_perf.rows.spec import RowSpec
from llama_perf.run.options import RunRequest
from llama_perf.run.session import Session
from llama_perf.words import shown
from scripts.doc_tables.document import Place, Table

_MODEL = "one-layer"
_CONFIG = ModelConfig(
    dim=256,
    n_layers=1,
    n_heads=4,
    n_kv_heads=4,
    intermediate_size=512,
    vocab_size=512,
    head_dim=64,
)
_CODEBOOK = "torchao.prototype.quantization"
_GROUPS = "granularity=PerGroup(32)"
_AFTER = "base_config=Int8WeightOnlyConfig(), step='prepare'"
CALLS = (
    "torchao:Int8WeightOnlyConfig()",
    f"torchao:Int8WeightOnlyConfig({_GROUPS})",
    "torchao:Int8DynamicActivationInt8WeightConfig()",
    "torchao:Int8StaticActivationInt8WeightConfig()",
    f"torchao:IntxWeightOnlyConfig({_GROUPS}, weight_dtype=torch.int4)",
    f"torchao:IntxWeightOnlyConfig({_GROUPS}, weight_dtype=torch.int2)",
    "torchao:Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4)",
    "torchao:StretchedIntxWeightConfig("
    "activation_quantization=None, b=4, quant_max=7, quant_min=-8)",
    "torchao:Int4WeightOnlyConfig()",
    "torchao:Int4WeightOnlyConfig(int4_packing_format='plain_int32')",
    "torchao:Int4WeightOnlyConfig(int4_packing_format='tile_packed_to_4d')",
    "torchao:PrototypeInt4WeightOnlyConfig(group_size=64)",
    "torchao:Int8DynamicActivationInt4WeightConfig()",
    "torchao:Float8DynamicActivationInt4WeightConfig()",
    "torchao:Float8WeightOnlyConfig()",
    "torchao:Float8DynamicActivationFloat8WeightConfig()",
    "torchao:Float8DynamicActivationFloat8WeightConfig("
    "granularity=PerRow(), kernel_preference=KernelPreference.TORCH)",
    "torchao:Float8DynamicActivationFloat8WeightOpaqueTensorConfig()",
    "torchao:Float8StaticActivationFloat8WeightConfig()",
    "torchao:NVFP4WeightOnlyConfig()",
    "torchao:NVFP4DynamicActivationNVFP4WeightConfig()",
    "torchao:NVFP4DynamicActivationNVFP4WeightConfig(use_triton_kernel=False)",
    "torchao:MXDynamicActivationMXWeightConfig()",
    "torchao:MXDynamicActivationMXWeightConfig("
    "kernel_preference=KernelPreference.EMULATED)",
    "torchao:MXDynamicActivationMXWeightConfig("
    "activation_dtype=torch.float4_e2m1fn_x2,"
    " kernel_preference=KernelPreference.EMULATED,"
    " weight_dtype=torch.float4_e2m1fn_x2)",
    "torchao:NF4WeightOnlyConfig()",
    "torchao:GGUFWeightOnlyConfig()",
    "torchao.prototype.quantization:UIntxWeightOnlyConfig()",
    "torchao:Int8DynamicActivationUIntxWeightConfig()",
    "torchao.experimental.quant_api:UIntxWeightOnlyConfig()",
    "torchao:IntNWeightOnlyConfig(n=4)",
    f"{_CODEBOOK}.codebook.codebook_quantized_tensor:CodebookWeightOnlyConfig("
    "block_size=(1, 1))",
    f"{_CODEBOOK}.codebook_coreml:CodebookWeightOnlyConfig("
    "block_size=[-1, 8], dtype=torch.uint4)",
    "torchao:GroupwiseLutWeightConfig(lut_block_shape=[64, -1])",
    "torchao:BlockSparseWeightConfig()",
    "torchao:SemiSparseWeightConfig()",
    f"torchao:AWQConfig({_AFTER})",
    f"torchao:SmoothQuantConfig({_AFTER})",
    "torchao:GPTQConfig(base_config=Int4WeightOnlyConfig(), step='observe')",
    "torchao:QATConfig(base_config=IntxWeightOnlyConfig(weight_dtype=torch.int4),"
    " step='prepare')",
    "torchao:FqnToConfig()",
)
TRAINING = (
    "BitNetTrainingConfig",
    "Float8BlockwiseLinearConfig",
    "FromIntXQuantizationAwareTrainingConfig",
    "Int8MixedPrecisionTrainingConfig",
    "Int8WeightOnlyQuantizedTrainingConfig",
    "IntXQuantizationAwareTrainingConfig",
    "NVFP4TrainingConfig",
    "TrainingOpBaseConfig",
)
"""Configs of training, which are no scheme of a model that generates."""
# What is said of a reason, by what it has in it.
_KINDS = {
    "replaces ": "needs calibration or training",
    "act_quant_scale": "needs calibration or training",
    "NoneType' object has no attribute 'detach'": "needs calibration or training",
    "mslk": "needs another package",
    "Requires ": "needs another package",
    "gemlite": "needs another package",
    "_cpu": "needs torchao built with its kernels for CPUs",
    "support device 'cpu'": "needs another device",
    "scaling configuration": "needs CUDA (sm_100)",
    "sm100": "needs CUDA (sm_100)",
    "compute capability": "needs CUDA (sm_89)",
    "CUDA": "needs CUDA",
    "cuda": "needs CUDA",
}
_LONGEST = 150


@cache
def _session() -> Session:
    folder = Path(tempfile.mkdtemp())
    (folder / _MODEL).mkdir()
    on: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}
    model = build_model(SyntheticWeights(_CONFIG, **on), **on)
    torch.save(model.state_dict(), folder / _MODEL / "model.pth")
    fields = json.dumps(to_hugging_face(_CONFIG))
    (folder / _MODEL / "config.json").write_text(fields, encoding="utf-8")
    session = Session(["cpu"], options=RunRequest(checkpoints=folder))
    session.ceiling = cache(lambda _device: Ceiling(read_gb_s=20.0))
    return session


def ended(call: str, dtype: str) -> RowResult:
    """How a row with this config ends."""
    row = RowSpec(
        model=_MODEL,
        quantization=call,
        dtype=dtype,
        device="cpu",
        max_new_tokens=4,
        num_samples=1,
    )
    return _session().run_row(row)


def _draw(cell: str) -> tuple[list[str], list[str]]:
    call = cell.strip("`")
    for dtype in ("float32", "bfloat16"):
        result = ended(call, dtype)
        now = result.measurement
        if now is not None:
            db = "-" if now.closeness_db is None else f"{now.closeness_db:.1f}"
            return [f"runs in {dtype}", f"{now.model_size_bytes / 1e6:.2f}", db, ""], []
    reason = str(result.reason)
    kind = next((kind for word, kind in _KINDS.items() if word in reason), "fails")
    # The table has the config, and a place in torchao's code is another's tomorrow.
    for form in (f"quantization: {shown(call)} is not allowed; ", f"{call}: "):
        reason = reason.removeprefix(form)
    reason = shorten(reason.partition(", at torchao/")[0], _LONGEST)
    return [kind, "", "", f"{result.status.value}: {reason.replace('|', '/')}"], []


TABLE = Table(
    place=Place("own-schemes.md", "configs"),
    headers=("config", "on a CPU", "MB", "dB", "reason"),
    keys=[(f"`{call}`",) for call in CALLS],
    draw=_draw,
)
