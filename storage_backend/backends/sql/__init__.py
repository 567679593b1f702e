"""DatabaseStorage: objects in SQLite or PostgreSQL."""

from storage_backend.backends.sql.storage import DatabaseStorage

__all__ = ["DatabaseStorage"]
