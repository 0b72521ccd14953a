"""Sweeps: sets of cells, and their launch on Ray or in this process."""
