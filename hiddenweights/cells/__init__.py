"""Cells and the store. Torch is imported only inside functions."""
