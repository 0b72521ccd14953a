"""The sources of runs, one module each. Every source yields the same kind of runs."""
