"""Fixtures of all tests. Nothing beyond pytest is imported at the top."""
