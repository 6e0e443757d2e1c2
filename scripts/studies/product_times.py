"""How fast each format's products are by themselves, and how many bytes they read.

Five shapes of a layer and the head, timed as autoquant times them: over more
copies of the weight than the caches hold.
"""

import json
import sys
from pathlib import Path

import torch

from llama_perf.llama.config import ModelConfig
from llama_perf.llama.presets import preset
from llama_perf.quantize.autoquant import timing
from llama_perf.rows.schemes import UNQUANTIZED

FORMATS = (UNQUANTIZED, "int8wo", "int4wo-64", "fp6", "sparse-marlin", "uintx-2-8")
# Up has the shape of gate.
_LINEARS = {
    "qkv": "attention.wqkv",
    "output": "attention.wo",
    "gate": "feed_forward.w1",
    "down": "feed_forward.w2",
}


def shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(N, K) of each product of a step."""
    linears = {label: config.linears[name] for label, name in _LINEARS.items()}
    return {**linears, "head": (config.vocab_size, config.dim)}


def main(model: str, device: str, how: timing.How, file: str) -> None:
    """Time every product, and append each to `file` as a line of JSON at once."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    where = torch.device(device)
    for label, (rows, columns) in shapes(preset(model)).items():
        product = timing.Product(
            tokens=1, rows=rows, columns=columns, dtype=dtype, how=how
        )
        formats = [name for name in FORMATS if name != "int4wo-64" or columns % 64 == 0]
        for scheme, us in timing.time_product(product, formats, where).items():
            size = timing.weight_bytes(scheme, product, where)
            gb_s = size / us / 1e3
            shape = {"product": label, "rows": rows, "columns": columns}
            line = json.dumps({**shape, "format": scheme, "us": us, "gb_s": gb_s})
            with Path(file).open("a", encoding="utf-8") as lines:
                lines.write(f"{line}\n")
            speed = f"{us:9.2f} us {gb_s:8.1f} GB/s"
            print(f"{label:<7} {rows} x {columns} {scheme:<14} {speed}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
