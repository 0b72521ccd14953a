"""Where runs are read from, one module each: every source yields runs for one table."""
