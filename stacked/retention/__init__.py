"""Removal of what is no longer needed: planned as a value, then carried out under traffic."""
