"""Amazon S3 and compatible services. Read the modules in this order.

1. `storage` has the public methods, `settings` the constructor's parameters, `bucket` what the methods share: identifiers and
   keys, translated errors, writing an object; `hooks` is for transfers and caches.
2. `router` sends a request through our signed HTTP client unless the boto3 client has custom hooks; `requests` declares the
   requests that both implement, `botocore_private` reads the private attributes of botocore that this choice needs.
3. Our client: `signed_requests` signs and sends, `retries` decides whether a failure is retried, `signing`, `endpoint` (host,
   region and credentials, as boto3 resolves them), `http`, `http_response`, `http_sockets`, `responses` (validates a success),
   `handler_response` (moto).
   boto3's: `boto3_client`, `boto3_requests`, `boto3_handlers`. Both: `object_head`, `xml_documents`, `errors`.
4. Reading: `reading`, `object_reader` (seekable), `downloading`. Writing: `uploading`, `destination`, `multipart`, `checksums`,
   `file_parts`, `upload_records` (to resume after a kill). Many objects: `listing`, `batches`; also `copying`, `parallel`.
"""

from storage_backend.backends.s3.storage import S3Storage

__all__ = ["S3Storage"]
