"""The backends. Each imports its own client library and never a sibling."""
