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
    """Those of its kernel in their order, each with its predicate."""
    done = subprocess.run(
        [CUOBJDUMP, "-sass", cubin], capture_output=True, text=True, check=True
    )
    return re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", done.stdout)


def wrong_before_the_wait(code: list[str]) -> list[str]:
    """What must not stand in front of the dependent wait, or that there is none.

    Every program gets there: in front of it nothing branches and nothing ends.
    """
    if WAIT not in code:
        return ["it does not wait"]
    before = [_bare(each) for each in code[: code.index(WAIT)]]
    return [each for each in before if _MEMORY.match(each) or _BRANCH.match(each)]


def _bare(instruction: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", instruction)
