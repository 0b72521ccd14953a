"""Tickets: found subnetworks as files."""
