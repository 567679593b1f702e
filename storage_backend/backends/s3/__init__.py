"""Amazon S3, and every service that speaks its protocol. To find one's way, read in this order.

1. `storage` has the verbs, `settings` the constructor's parameters, `bucket` what the verbs share: keys, our errors, and the one
   way to write an object; `hooks` is for transfers and caches.
2. `router` sends a request through our signed HTTP client unless the boto3 client has custom hooks; `requests` names the
   requests that both offer, `botocore_private` has the private attributes of botocore that the choice rests on.
3. Our client: `signed_requests` signs, sends and retries (`retries`: after how long), with `signing`, `endpoint` (host, region
   and credentials, as boto3 resolves them), `http`, `http_response`, `http_sockets`, `responses` (what a success must have),
   `handler_response` (moto).
   boto3's: `boto3_client`, `boto3_requests`, `boto3_handlers`. Of both: `object_head`, `xml_documents`, `errors`.
4. Reading: `reading`, `object_reader` (seekable), `downloading`. Writing: `uploading`, `destination`, `multipart`, `checksums`,
   `file_parts`, `upload_records` (what a killed process left). Many: `listing`, `batches`, `copying`, `parallel` (threads).
"""

from storage_backend.backends.s3.storage import S3Storage

__all__ = ["S3Storage"]
