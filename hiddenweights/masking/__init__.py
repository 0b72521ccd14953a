"""The method: everything that `supermask(model)` needs. Plain arguments and tensors, no configs, no files."""
