"""Data sets, seeded splits and batches of images; knows nothing of networks."""
