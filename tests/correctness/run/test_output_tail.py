"""What is said of a process that broke: the end of what it printed."""

import pytest

from llama_perf.run.output_tail import tail

FRAMES = """Traceback (most recent call last):
  File "a.py", line 3, in main
    run()
  File "b.py", line 9, in run
    raise ValueError("no")
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no output"),
        ("a\n\n  b  \nc\nd\ne\nf\n", "b | c | d | e | f"),
        (f"before\n{FRAMES}ValueError: no\n", "ValueError: no"),
        (f"{FRAMES}ValueError: no\n  and why\n", "ValueError: no | and why"),
        (f"{FRAMES}KeyError: 1\n\nDuring\n\n{FRAMES}OSError: 2\n", "OSError: 2"),
        (f"{FRAMES}ValueError: no\nFatal: aborted", "ValueError: no | Fatal: aborted"),
        # It was ended while it printed.
        (FRAMES.partition('  File "b')[0], 'File "a.py", line 3, in main | run()'),
    ],
)
def test_of_a_traceback_it_is_the_error(text: str, said: str) -> None:
    assert tail(text) == said
