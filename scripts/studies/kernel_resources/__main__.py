"""`python -m scripts.studies.kernel_resources`: docs/kernels.md's tables of resources.

Compiles every Triton kernel for sm_80, sm_90 and sm_100 at the shapes of Llama-2-7B and
Llama-3-8B. It needs Triton and no GPU. It fails if a kernel spills registers.
"""

import argparse
import sys

from scripts.studies.kernel_resources.tables import FORMATS, TABLES, write


def main() -> int:
    """Compile what was named, or everything; returns 1 if a kernel spills."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.studies.kernel_resources",
        description="Compile every Triton kernel and write the tables of"
        " docs/kernels.md. Rows that were not compiled stay as they are.",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        choices=["attention", "fused", *FORMATS],
        help=f"attention, fused, or a format: {', '.join(FORMATS)}; a format after"
        " fused is that of the fused kernels (default: everything)",
    )
    names = parser.parse_args().names
    formats = [name for name in names if name in FORMATS]
    wanted = [name for name in TABLES if name in names or not names]
    if formats and "fused" not in names:
        wanted.append("products")
    spills = sum(
        write(TABLES[name], () if name == "attention" else formats) for name in wanted
    )
    return 1 if spills else 0


if __name__ == "__main__":
    sys.exit(main())
