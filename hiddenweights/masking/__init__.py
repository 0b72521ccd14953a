"""What `supermask(model)` needs, and nothing else: plain arguments and tensors, no config object, no file."""
