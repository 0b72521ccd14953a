"""The figures of one paper each, and its published numbers: a second paper is a second package.

A package has `FIGURES` and, per figure with published numbers, a ``FIGURE.csv`` (see `analysis.published`).
"""
