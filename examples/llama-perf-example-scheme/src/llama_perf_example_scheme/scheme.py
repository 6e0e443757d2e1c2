"""What the entry point `example-nf4` gives to llama-perf."""

from llama_perf import OwnScheme
from llama_perf_example_scheme.nf4 import BYTES_PER_WEIGHT, NF4Config, product

NF4 = OwnScheme(
    config=NF4Config(),
    devices=("cuda", "cpu"),
    bytes_per_weight=BYTES_PER_WEIGHT,
    fused_product=product,
)
