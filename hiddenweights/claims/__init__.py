"""What is claimed of cells, and whether their results decide it.

Pure functions of configs and numbers, below both packages that need them: `analysis` judges what a table
holds, `sweeps` plans which cells to train next. Neither imports the other.
"""
