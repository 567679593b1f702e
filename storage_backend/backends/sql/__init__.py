"""DatabaseStorage: objects in SQLite or PostgreSQL.

Read the modules in this order:

`schema`: the tables, and what a version is. `object_row`: a row of the table of objects, as a tuple.
`storage`: the public methods; SQLAlchemy is imported on first use. `address`: parses the URL.
`database`: runs functions in transactions, retries them, and deletes garbage. `statements`: the SQL.
`reading`, `listing`, `copying`, `batches`: implement the methods; `chunked_upload` implements writes.
`heartbeat`: keeps slow uploads alive. `connection_pool`: the connections of one process, and forks.
`drivers`: opens and configures a connection. `errors`: translates database errors.
"""

from storage_backend.backends.sql.storage import DatabaseStorage

__all__ = ["DatabaseStorage"]
