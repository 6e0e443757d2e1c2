"""`python -m scripts.studies.kernel_resources`: docs/kernels.md's tables of resources.

Compiles every Triton kernel for sm_80, sm_90 and sm_100 at the shapes of Llama-2-7B and
Llama-3-8B. It needs Triton and no GPU. It fails if a kernel spills registers.
"""

from __future__ import annotations

import argparse
import sys

from scripts.studies.kernel_resources import attention, fused, products


def main() -> int:
    """Compile what was named, or everything; returns 1 if a kernel spills."""
    fused_names = [variant.name for variant in fused.FUSED]
    product_names = [variant.name for variant in products.VARIANTS]
    formats = list(dict.fromkeys((*product_names, *fused_names)))
    parser = argparse.ArgumentParser(
        prog="python -m scripts.studies.kernel_resources",
        description="Compile every Triton kernel and write the tables of"
        " docs/kernels.md. Rows that were not compiled stay as they are.",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        choices=["attention", "fused", *formats],
        help=f"attention, fused, or a format: {', '.join(formats)}; a format after"
        " fused is that of the fused kernels (default: everything)",
    )
    names = parser.parse_args().names
    chosen = [name for name in names if name in formats]
    spilled = 0
    if not names or "attention" in names:
        spilled += attention.main()
    if not names or "fused" in names:
        spilled += fused.main(chosen or fused_names)
    elif chosen:
        spilled += products.main(chosen)
    if not names:
        spilled += products.main(product_names)
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
