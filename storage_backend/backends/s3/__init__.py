"""S3Storage: Amazon S3, and every service that speaks its protocol."""

from storage_backend.backends.s3.storage import S3Storage

__all__ = ["S3Storage"]
