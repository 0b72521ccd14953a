"""The report as an HTML page, with interactive charts and a table of all cells."""
