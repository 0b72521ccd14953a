"""Claims about cells, and the tests that decide them.

Pure functions of configs and numbers. `analysis` uses them to judge the cells of a table, and `sweeps` to
plan which cells to train next. Neither of these packages imports the other.
"""
