"""A process in a group of its own, which does not outlive the process that started it.

A guard beside it (`guard_process.py`) reads from a pipe whose other end only this
process has. The pipe ends when this process does, be it by `kill -9`; the guard then
kills the group: the process and all that it started. That works while the process is in
a call that holds Python's lock, for children too, and for workers of older revisions.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from llama_perf.run.interrupts import shielded

_SCRIPT = Path(__file__).with_name("guard_process.py")
_POLL_S = 0.01


class GuardedProcess:
    """A process and its guard; it is to be closed.

    Both inherit the descriptors `locks`, and the process also `pass_fds`.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        output: IO[bytes],
        pass_fds: Sequence[int],
        locks: Sequence[int],
        environment: Mapping[str, str],
    ) -> None:
        with shielded():
            # Ctrl-C in the terminal does not reach another session.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[*pass_fds, *locks],
                env=environment,
                start_new_session=True,
            )
            self.id = self._process.pid
            self._code: int | None = None
            try:
                self._guard = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(_SCRIPT), str(self.id)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=locks,
                    start_new_session=True,
                )
            except OSError:
                self.kill()
                self._process.wait()
                raise

    @property
    def stdin(self) -> IO[bytes]:
        """The pipe to the process."""
        assert self._process.stdin is not None, "started with a pipe"
        return self._process.stdin

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs.

        The process stays a zombie until it is closed. So its number, which is also the
        group's, belongs to no other process that the guard might kill.
        """
        if self._code is None:
            how = os.WEXITED | os.WNOHANG | os.WNOWAIT
            try:
                ended = os.waitid(os.P_PID, self.id, how)
            except ChildProcessError:
                # Where SIGCHLD is ignored, the system keeps no code.
                self._code = 0
                return 0
            if ended is not None:
                exited = ended.si_code == os.CLD_EXITED
                self._code = ended.si_status if exited else -ended.si_status
        return self._code

    def wait(self, seconds: float) -> int:
        """Its exit code; the group is killed where it does not end by itself."""
        deadline = time.monotonic() + seconds
        is_killed = False
        while (code := self.poll()) is None:
            if not is_killed and time.monotonic() >= deadline:
                self.kill()
                is_killed = True
            time.sleep(_POLL_S)
        return code

    def kill(self) -> None:
        """Kill the group, unless it is closed: its number may be another's then."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.id, signal.SIGKILL)

    def close(self) -> None:
        """Kill what is left of the group, and return when it is gone."""
        with shielded():
            # The guard would do it too, unless somebody ended the guard.
            self.kill()
            assert self._guard.stdin is not None, "started with a pipe"
            self._guard.stdin.close()
            self._guard.wait()
            self._process.wait()
            with suppress(BrokenPipeError):
                self.stdin.close()
