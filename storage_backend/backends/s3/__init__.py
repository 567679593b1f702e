"""Amazon S3, and every service that speaks its protocol.

To find one's way, read in this order:

1. `storage` has the verbs, `settings` what the constructor takes, `bucket` what the verbs share: keys, errors, receipts.
2. `router` sends a request through our signed HTTP client, unless the boto3 client has custom hooks. `requests` names the
   requests that both ways offer; `botocore_private` has the private attributes of botocore that the choice rests on.
3. Our way: `signed_requests` (signs, sends, retries), `retries` (when again, and after how long), `signing`, `endpoint` (host,
   region and credentials, as boto3 resolves them), `http` with `http_response`, `http_sockets` and `file_parts`, `responses` (what a success must have).
   boto3's way, and all rare requests: `boto3_client`, `boto3_requests`, `boto3_handlers`. Both: `xml_documents`, `errors`.
4. Reading: `reading`, `downloading`. Writing: `uploading`, `destination`, `multipart`, `upload_records` (what a killed process
   left), `checksums`. The rest: `listing`, `copying`, `batches` (many objects), `parallel` (threads).
"""

from storage_backend.backends.s3.storage import S3Storage

__all__ = ["S3Storage"]
