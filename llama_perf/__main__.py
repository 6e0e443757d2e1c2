"""`python -m llama_perf`."""

import sys

from llama_perf.cli.main import main

sys.exit(main())
