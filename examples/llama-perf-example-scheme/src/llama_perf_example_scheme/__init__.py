"""An example of what a package can add to llama-perf: a scheme, its kernel and rows."""
