"""What is said of ranks that do not end in time: which one the others wait for.

Just before the time is over, a thread of each rank tells the others, by torchrun's
store, what its main thread does. The first of them to hear all replies for them.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from llama_perf.devices.ranks import Rank
from llama_perf.run.worker_protocol import WorkerReply

# Before the limit, but at most a quarter of it.
_EARLY_S, _EARLY_SHARE = 5.0, 0.25
# Until every rank has told, and the time that one leaves to those before it.
_TELLING_S, _TURN_S = 0.5, 0.3
# Whoever is in there waits for other ranks.
_WAITING = ("llama_perf/devices/ranks.py", "torch/distributed/")


class Watch:
    """Watches this rank's main thread while a task runs."""

    def __init__(
        self,
        connect: Callable[[], Any],
        rank: Rank,
        number: int,
        send: Callable[[WorkerReply], None],
        limit_s: float | None,
    ) -> None:
        self.step = "starting"
        """What the task told last."""
        self._connect, self._rank, self._send = connect, rank, send
        self._number, self._limit_s = number, limit_s
        self._ended = threading.Event()

    def __enter__(self) -> "Watch":
        if self._limit_s is not None:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._ended.set()

    def _watch(self) -> None:
        assert self._limit_s is not None, "there is a limit"
        early_s = min(_EARLY_S, self._limit_s * _EARLY_SHARE)
        if self._ended.wait(self._limit_s - early_s):
            return
        store, number = self._connect(), self._number
        keys = [f"seen/{number}/{index}" for index in range(self._rank.count)]
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        told = [_is_waiting(frame), _where(frame)]
        store.set(keys[self._rank.index], json.dumps(told))
        time.sleep(_TELLING_S + _TURN_S * self._rank.index)
        seen = [json.loads(store.get(k)) if store.check([k]) else None for k in keys]
        if self._ended.is_set() or store.add(f"told/{number}", 1) != 1:
            return
        self._send(WorkerReply(broken=self._words(seen)))

    def _words(self, seen: list[list[Any] | None]) -> str:
        """Of each rank whether it waits for others, and where it is; None: silent."""
        late = f"after {self._limit_s:g} s (row-timeout), at {self.step!r}"
        for index, told in enumerate(seen):
            if told is None:
                return f"rank {index}: does not answer {late}"
        working = [index for index, told in enumerate(seen) if told and not told[0]]
        if len(working) == 1:
            (index,) = working
            told = seen[index]
            assert told is not None, "it has told"
            return f"rank {index}: the others wait for it {late}; it is in {told[1]}"
        return f"its ranks were ended {late}"


def _frames(frame: FrameType | None) -> list[FrameType]:
    """The frame and those that called it."""
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _is_waiting(frame: FrameType | None) -> bool:
    names = [one.f_code.co_filename.replace("\\", "/") for one in _frames(frame)]
    return any(part in name for name in names for part in _WAITING)


def _where(frame: FrameType | None) -> str:
    if frame is None:
        return "a thread that is gone"
    code = frame.f_code
    return f"{code.co_name} ({code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno})"
