"""The step of `gpu-perf.yml` that keeps the history, with a repository of its own."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from scripts import ROOT
from tests.correctness.support.git_commands import git

BRANCH = "perf-history"
# `llama-perf history add RESULTS --history FOLDER`, and what happens meanwhile.
ADD = """\
#!/bin/sh -e
[ "$1 $2 $4" = "history add --history" ]
mkdir -p "$5"
cat "$3" >> "$5/cpu.jsonl"
if [ -n "$MEANWHILE" ]; then sh -e "$MEANWHILE"; fi
"""
MEANWHILE = """\
cd {other}
git fetch -q origin
git checkout -q --detach origin/perf-history
echo other >> history/cpu.jsonl
git -c user.name=B -c user.email=b@example.org commit -qam other
git push -q origin HEAD:refs/heads/perf-history
"""


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


class Remote:
    """A bare repository, whose clones keep runs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "remote.git"
        first = folder / "first"
        git(folder, "init", "-q", "--bare", "-b", "main", str(self.path))
        git(folder, "clone", "-q", str(self.path), str(first))
        (first / "file").write_text("text", encoding="utf-8")
        (first / ".gitignore").write_text(".venv\n", encoding="utf-8")
        git(first, "add", ".")
        git(first, "commit", "-q", "-m", "first")
        git(first, "push", "-q", "origin", "HEAD:refs/heads/main")
        program(folder / "bin" / "sleep", "#!/bin/sh\n")

    def clone(self, name: str) -> Path:
        path = self.folder / name
        git(self.folder, "clone", "-q", str(self.path), str(path))
        return path

    def keep(
        self, run: str, meanwhile: str = "", path: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the step in a clone of its own, as a runner does, for one run."""
        jobs = yaml.safe_load((ROOT / ".github/workflows/gpu-perf.yml").read_text())
        steps = jobs["jobs"]["history"]["steps"]
        (step,) = (one for one in steps if one.get("id") == "keep")
        clone = self.clone(f"clone-{run}")
        program(clone / ".venv" / "bin" / "llama-perf", ADD)
        temporary = self.folder / f"temporary-{run}"
        (temporary / "run").mkdir(parents=True)
        (temporary / "run" / "results.json").write_text(f"{run}\n", encoding="utf-8")
        hook = self.folder / f"meanwhile-{run}"
        hook.write_text(meanwhile, encoding="utf-8")
        if path is not None:
            git(clone, "remote", "set-url", "origin", path)
        environment = {
            **{name: value for name, value in step["env"].items() if name != "RUN"},
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "RUNNER_TEMP": str(temporary),
            "RUN": run,
            "MEANWHILE": str(hook) if meanwhile else "",
        }
        # The shell that GitHub runs a step with.
        return subprocess.run(
            ["bash", "-e", "-c", step["run"]],
            cwd=clone,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def kept(self) -> tuple[list[str], list[str]]:
        """The files of the branch, and the lines of its history."""
        files = git(self.path, "ls-tree", "-r", "--name-only", BRANCH).splitlines()
        lines = git(self.path, "show", f"{BRANCH}:history/cpu.jsonl").splitlines()
        return files, lines


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    return Remote(tmp_path)


def test_the_branch_is_made_appended_to_and_merged(remote: Remote) -> None:
    files = [".gitattributes", "history/cpu.jsonl"]
    done = remote.keep("1")
    assert done.returncode == 0, done.stderr
    assert remote.kept() == (files, ["1"])
    # It has no commit in common with the code.
    assert git(remote.path, "rev-list", "--count", BRANCH) == "1\n"
    done = remote.keep("2")
    assert done.returncode == 0, done.stderr
    assert remote.kept() == (files, ["1", "2"])
    other = remote.clone("other")
    done = remote.keep("3", MEANWHILE.format(other=other))
    assert done.returncode == 0, done.stderr
    kept, lines = remote.kept()
    assert kept == files
    assert lines[:2] == ["1", "2"]
    assert sorted(lines[2:]) == ["3", "other"]
    assert git(remote.path, "log", "-1", "--format=%an: %s", BRANCH) == (
        "github-actions[bot]: gpu-perf run 3\n"
    )
    assert git(remote.path, "rev-parse", "main") != git(
        remote.path, "rev-parse", BRANCH
    )


def test_two_first_runs_are_both_kept(remote: Remote) -> None:
    # Neither has a commit in common with the other.
    lines = ["mkdir history", "echo 'history/*.jsonl merge=union' > .gitattributes"]
    lines += ["echo other > history/cpu.jsonl", "git add ."]
    commit = "git -c user.name=B -c user.email=b@example.org commit -qm other"
    other = remote.clone("other")
    begin = [f"cd {other}", "git switch -q --orphan new"]
    push = "git push -q origin HEAD:refs/heads/perf-history"
    done = remote.keep("1", "\n".join([*begin, *lines, commit, push]))
    assert done.returncode == 0, done.stderr
    assert sorted(remote.kept()[1]) == ["1", "other"]


def test_a_remote_that_fails_is_no_absent_branch(remote: Remote) -> None:
    done = remote.keep("1", path=str(remote.folder / "nowhere.git"))
    assert done.returncode not in (0, 2)
    assert not git(remote.path, "branch", "--list", BRANCH)
