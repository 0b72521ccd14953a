"""From logs to figures: fetch -> tidy table -> numbers with n and an interval -> axes."""
