"""The report as an HTML page: charts that answer to the mouse and the keyboard, and a table of all cells."""
