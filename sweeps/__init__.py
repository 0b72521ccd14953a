"""Sets of cells, and launching them: on Ray, or in this process."""
