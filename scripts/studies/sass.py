"""Machine code of a kernel: what a warp issues in its main loop, by pipe, and the cap.

The cap is the largest share of a card's bandwidth at which a loop can read weights:

    cap = bytes a pass / clocks a pass / bytes a clock of the memory
    clocks a pass = the most, over the pipes, of instructions of all warps / issue rate

It assumes that other programs fill every wait, so it is never reached. Counts are
static: a predicated instruction counts in full. Needs Triton's `nvdisasm` and no GPU.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import triton


@dataclass(frozen=True, slots=True)
class Card:
    """Figures of a datasheet: TB/s, multiprocessors, clock in GHz; KB of shared memory.

    `issue` has the instructions of a warp that each pipe of a multiprocessor starts in
    a clock.
    """

    name: str
    bandwidth: float
    multiprocessors: int
    clock: float
    shared_kb: int
    issue: dict[str, float]

    @property
    def bytes_a_clock(self) -> float:
        """What the memory delivers to each multiprocessor."""
        return self.bandwidth * 1e3 / (self.multiprocessors * self.clock)


NVDISASM = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
ISSUE = "issue"
"""All instructions together: four schedulers, one instruction each."""
_AMPERE = {
    ISSUE: 4.0,
    "integer": 2.0,
    "multiply": 2.0,
    "float": 2.0,
    "half": 4.0,
    # m16n8k16, 2048 products: as many as mma.sync reaches, not wgmma.
    "tensor": 0.5,
    "memory": 1.0,
    "special": 0.5,
}
_HOPPER = {**_AMPERE, "float": 4.0}
CARDS = {
    "A100": Card("A100 80 GB", 2.0, 108, 1.41, 164, _AMPERE),
    "H100": Card("H100 SXM", 3.35, 132, 1.9, 228, _HOPPER),
    "H200": Card("H200", 4.8, 132, 1.9, 228, _HOPPER),
    "B200": Card("B200", 8.0, 148, 1.9, 228, _HOPPER),
}

# The first letters of an instruction's name, the longest match counts. An instruction
# that is on no list (a move, a branch, the uniform pipe's) takes an issue slot only.
_PIPES = {
    "integer": "LOP SHF IADD PRMT ISETP SEL FSEL LEA VIADD VIMNMX IMNMX BMSK SGXT PLOP"
    " FMNMX FSETP F2FP VABSDIFF",
    "multiply": "IMAD IDP",
    "float": "FFMA FADD FMUL FHFMA",
    "half": "HADD HFMA HMUL HMNMX HSET",
    "tensor": "HMMA IMMA HGMMA IGMMA QGMMA QMMA OMMA",
    "memory": "LDG LDS STG STS ATOM RED LD.E ST.E STSM LDL STL SHFL",
    "special": "MUFU I2F F2I F2F POPC FLO I2I FRND",
    "barrier": "BAR DEPBAR LDGDEPBAR MEMBAR SYNCS",
}
_NAMES = {name: pipe for pipe, names in _PIPES.items() for name in names.split()}


def pipe_of(instruction: str) -> str:
    """The pipe of a name such as `LOP3.LUT`: one of a card's, `barrier` or `other`."""
    known = [name for name in _NAMES if instruction.startswith(name)]
    return _NAMES[max(known, key=len)] if known else "other"


@dataclass(frozen=True, slots=True)
class Loop:
    """The instructions of a warp in one pass through a loop, in their order.

    `unrolled`: there is no loop, and these are all instructions of the kernel.
    """

    instructions: Sequence[str]
    unrolled: bool = False

    @property
    def pipes(self) -> Counter[str]:
        """How many go to each pipe; all together as ISSUE."""
        counted = Counter(map(pipe_of, self.instructions))
        counted[ISSUE] = len(self.instructions)
        return counted

    @property
    def asynchronous(self) -> bool:
        """Whether it copies to shared memory while it goes on."""
        return any(it.startswith("LDGSTS") for it in self.instructions)

    def clocks(self, card: Card, warps: int) -> float:
        """Those that a multiprocessor needs for a pass of `warps` warps."""
        pipes = self.pipes
        return max(warps * pipes[pipe] / rate for pipe, rate in card.issue.items())

    def narrowest(self, card: Card) -> str:
        """The pipe that takes the most clocks."""
        pipes = self.pipes
        return max(card.issue, key=lambda pipe: pipes[pipe] / card.issue[pipe])


def cap(loop: Loop, card: Card, *, warps: int, weight_bytes: float) -> float:
    """The percentage of the bandwidth; `weight_bytes` are those of a pass."""
    return 100 * weight_bytes / loop.clocks(card, warps) / card.bytes_a_clock


def disassemble(cubin: bytes) -> str:
    """The text of a kernel's machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [NVDISASM, "-c", file.name], capture_output=True, text=True, check=True
        )
    return done.stdout


def code_lines(text: str) -> list[str]:
    """Its instructions in their order, with predicates and operands."""
    return _INSTRUCTION.findall(text)


def loops(text: str) -> list[Loop]:
    """Those of a kernel, a loop for each branch back, in the order of their ends."""
    labels: dict[str, int] = {}
    code: list[str] = []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        elif instruction := _INSTRUCTION.search(line):
            code.append(instruction[1])
    # Without predicates and operands.
    names = [re.sub(r"^@!?U?P\w+\s+", "", line).split()[0] for line in code]
    found = []
    for place, line in enumerate(code):
        target = re.search(r"\bBRA\b.*?`\((\.L_x_\d+)\)", line)
        # A kernel ends in a branch to itself.
        if target and labels.get(target[1], place) < place:
            found.append(Loop(names[labels[target[1]] : place + 1]))
    return found or [Loop(names, unrolled=True)]


def main_loop(text: str) -> Loop:
    """The largest loop; all of a kernel whose loops were unrolled."""
    return max(loops(text), key=lambda loop: len(loop.instructions))
