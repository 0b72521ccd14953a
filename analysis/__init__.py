"""From logs to figures: fetch -> table -> numbers with n and an interval -> axes."""
