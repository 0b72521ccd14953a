"""Who trains which cell, and where its result is kept; torch is imported inside functions only."""
