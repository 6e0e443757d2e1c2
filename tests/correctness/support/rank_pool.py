"""Processes that are the ranks of a gloo group, which serve many tests."""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llama_perf.devices.ranks import Rank

_PATIENCE_S = 120


class RankPool:
    """`count` processes, in which a function of a test's module runs as ranks do.

    On "cuda" each has a GPU of its own, and NCCL beside gloo.
    """

    def __init__(self, count: int, device: str = "cpu") -> None:
        self.count, self._device = count, device
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def run(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `work(*arguments)` returns on each rank; they start with seed 0.

        A failure on any rank fails here, with its traceback.
        """
        self._start()
        for pipe in self._pipes:
            pipe.send(partial(work, *arguments))
        answers: list[Any] = []
        failures: list[str] = []
        for index, pipe in enumerate(self._pipes):
            # Another rank that failed lets this one wait for nothing.
            if not pipe.poll(5 if failures else _PATIENCE_S):
                failures.append(f"rank {index} does not answer")
                continue
            try:
                is_fine, answer = pipe.recv()
            except EOFError:
                is_fine, answer = False, "its process ended"
            answers.append(answer)
            if not is_fine:
                failures.append(f"rank {index}: {answer}")
        if failures:
            self.close()
            raise AssertionError("\n".join(failures))
        return answers

    def _start(self) -> None:
        if self._processes:
            return
        folder = tempfile.mkdtemp()
        context = multiprocessing.get_context("spawn")
        for index in range(self.count):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(Rank(index, self.count), self._device, folder, theirs),
                daemon=True,
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def close(self) -> None:
        """End the processes; `run` starts others."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._pipes = [], []


def _serve(rank: Rank, device: str, folder: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank.index)
    backend = "gloo"
    if device == "cuda":
        torch.cuda.set_device(rank.index)
        backend = "cpu:gloo,cuda:nccl"
    place = f"file://{Path(folder) / 'store'}"
    dist.init_process_group(backend, place, rank=rank.index, world_size=rank.count)
    while True:
        try:
            work = pipe.recv()
        except EOFError:
            return
        torch.manual_seed(0)
        try:
            answer = True, work()
        except Exception:
            answer = False, traceback.format_exc()
        pipe.send(answer)
