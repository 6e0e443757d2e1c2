"""`python -m llama_perf`."""

from __future__ import annotations

import sys

from llama_perf.cli.main import main

sys.exit(main())
