"""The backends. Each imports its own client library, when it is first used, and never another backend.

Read them in this order: `memory`, the reference implementation; `local`, files beneath a directory; `sql`, SQLite and PostgreSQL;
`remote`, SSH servers; `s3`. The docstring of each folder says in which order to read its modules.
"""
