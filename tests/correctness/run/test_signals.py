"""What Ctrl-C and SIGTERM do, each in a small process of its own, which they end."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Never

import pytest

from llama_perf import __main__ as entry
from tests.correctness.support.git_commands import git
from tests.correctness.support.plugin_project import ROOT
from tests.correctness.support.processes import HANG_S

HEAD = """
import os, signal, sys
from llama_perf.run.interrupts import Interruptible, described, interrupts, shielded

def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)

INT, TERM = signal.SIGINT, signal.SIGTERM
"""


def ended(code: str, *words: str) -> tuple[int, str, str]:
    """The code, stdout and stderr of a process that runs `code`."""
    command = [sys.executable, "-c", HEAD + code, *words]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=HANG_S
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("signals", "code"), [("INT, TERM", 130), ("TERM, INT", 143), ("TERM, TERM", 143)]
)
def test_the_first_signal_ends_a_block_and_the_next_change_nothing(
    signals: str, code: int
) -> None:
    first, second = signals.split(", ")
    body = f"""
with interrupts():
    with Interruptible() as block:
        send({first})
        print("not reached")
    send({second}, {first})
    print(described(block.code), flush=True)
# The process still ends as it was going to.
send({second}, {first})
sys.exit(block.code)
"""
    by = " by SIGTERM" if code == 143 else ""
    assert ended(body) == (code, f"interrupted{by}\n", "")


def test_a_block_that_ends_by_itself_is_as_complete() -> None:
    body = """
before = [signal.getsignal(number) for number in (INT, TERM)]
with interrupts():
    with Interruptible() as block:
        pass
    assert block.code is None
assert [signal.getsignal(number) for number in (INT, TERM)] == before
with interrupts():
    with Interruptible():
        pass
    send(INT, TERM)
    print("complete")
"""
    assert ended(body) == (0, "complete\n", "")


def test_what_is_shielded_is_done_before_the_interrupt() -> None:
    body = """
with interrupts(), Interruptible() as block:
    with shielded():
        with shielded():
            send(TERM, INT)
        print("shielded", flush=True)
    print("not reached")
sys.exit(block.code)
"""
    # By the one that came first.
    assert ended(body) == (143, "shielded\n", "")


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    body = """
signal.signal(INT, signal.SIG_IGN)
with interrupts(), Interruptible() as block:
    send(INT)
    print("as under nohup")
"""
    assert ended(body) == (0, "as under nohup\n", "")


@pytest.mark.parametrize("command", ["generate", "tune", "doctor", "rows"])
@pytest.mark.parametrize(("number", "code"), [("INT", 130), ("TERM", 143)])
def test_every_command_ends_in_one_line(command: str, number: str, code: int) -> None:
    body = f"""
from llama_perf.cli import main
module = main.COMMANDS[{command!r}]
module.add_arguments = lambda _: None
module.main = lambda _: send({number})
sys.exit(main.main([{command!r}]))
"""
    by = " by SIGTERM" if number == "TERM" else ""
    assert ended(body) == (code, "", f"llama-perf: interrupted{by}\n")


def test_a_temporary_checkout_is_gone_after_signals_at_any_moment(
    tmp_path: Path,
) -> None:
    repository, temporary = tmp_path / "repository", tmp_path / "temporary"
    repository.mkdir()
    temporary.mkdir()
    git(repository, "init", "-q")
    (repository / "file").write_text("1", encoding="utf-8")
    git(repository, "add", "file")
    git(repository, "commit", "-q", "-m", "1")
    body = """
from pathlib import Path
from llama_perf.run import revision

def run_git(*arguments, run_git=revision.run_git):
    # While git checks out, and while it removes.
    send(TERM, INT)
    return run_git(*arguments)

revision.run_git = run_git
with interrupts(), Interruptible() as block:
    with revision.checked_out("HEAD", root=Path(sys.argv[1])):
        print("not reached")
sys.exit(block.code)
"""
    body = f"os.environ['TMPDIR'] = sys.argv[2]\n{body}"
    assert ended(body, str(repository), str(temporary)) == (143, "", "")
    assert list(temporary.iterdir()) == []
    assert git(repository, "worktree", "list").count("\n") == 1


def test_an_interrupt_while_the_command_line_is_loaded_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(ModuleType):
        def __getattr__(self, _name: str) -> Never:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "llama_perf.cli.main", Interrupted("main"))
    assert entry.main() == 130
    assert capsys.readouterr().err == "llama-perf: interrupted\n"
