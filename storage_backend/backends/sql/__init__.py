"""DatabaseStorage: objects in SQLite or PostgreSQL.

Read the modules in this order:

`schema`: the tables, and what a version is. `object_row`: a row of the table of objects, as a tuple.
`storage`: the verbs, without SQLAlchemy until the first of them. `address`: what a URL means.
`database`: runs work in transactions, tries it again, and deletes garbage. `statements`: the SQL of that work.
`reading`, `listing`, `copying`, `batches`: the work of the verbs. `chunked_upload`: of those that write.
`heartbeat`: keeps slow uploads alive. `connection_pool`: the connections of one process, and forks.
`drivers`: opens a connection and sets it up. `errors`: StorageErrors for those of the databases.
"""

from storage_backend.backends.sql.storage import DatabaseStorage

__all__ = ["DatabaseStorage"]
