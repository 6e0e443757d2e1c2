"""git in a repository that a test made, under a name of the test's own."""

import subprocess
from pathlib import Path


def git(repository: Path, *arguments: str) -> str:
    """What the command printed; raises CalledProcessError where it failed."""
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(repository), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
