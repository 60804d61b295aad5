"""Importers of recorded traces: files to arrivals."""
