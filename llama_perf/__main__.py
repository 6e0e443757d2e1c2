"""`python -m llama_perf` and the command `llama-perf`."""

import sys


def main() -> int:
    """Run the command line; an interrupt while it is being loaded is one line too."""
    try:
        from llama_perf.cli.main import main as command
    except KeyboardInterrupt:
        print("llama-perf: interrupted", file=sys.stderr)
        return 130
    return command()


if __name__ == "__main__":
    sys.exit(main())
