"""What a compiled kernel does, read from its machine code (SASS).

By the disassembler that Triton's package carries.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import triton

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# What dependent launch is in it: the wait, and letting the next kernel start.
WAIT, LET_START = "ACQBULK", "PREEXIT"
# Global memory, or any that might be; constants (LDC) and prefetches (CCTL) are none.
_MEMORY = re.compile(r"(LD|LDG|LDGSTS|ST|STG|ATOM|ATOMG|RED|REDG|UBLK\w+|UTMA\w+)\b")
_BRANCH = re.compile(r"(BRA|BRX|BRXU|JMP|JMX|CALL|RET|EXIT|BSSY|BSYNC|BREAK)\b")


def instructions(cubin: Path) -> list[str]:
    """The instructions of its kernel in their order, with their predicates."""
    done = subprocess.run(
        [CUOBJDUMP, "-sass", cubin], capture_output=True, text=True, check=True
    )
    return re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", done.stdout)


def wrong_before_the_wait(code: list[str]) -> list[str]:
    """Instructions that must not stand before the dependent wait, or that none waits.

    Every program must reach the wait: before it nothing branches and nothing ends.
    """
    if WAIT not in code:
        return ["it does not wait"]
    before = [_bare(line) for line in code[: code.index(WAIT)]]
    return [line for line in before if _MEMORY.match(line) or _BRANCH.match(line)]


def _bare(instruction: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", instruction)
