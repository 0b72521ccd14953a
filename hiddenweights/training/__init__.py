"""From one cell's config to its records, epoch by epoch; knows no store, no Ray and no W&B."""
