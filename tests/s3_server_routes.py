"""Which S3 operation a request asks for, which IAM actions that needs, and whether they are allowed."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from urllib.parse import unquote_to_bytes

from tests.s3_server_wire import Request, S3Error

UNKNOWN = "Unknown"
# Those that are not built; a plain GET or PUT in their place would look like success.
_SUBRESOURCES = frozenset(
    {
        "accelerate",
        "acl",
        "analytics",
        "attributes",
        "cors",
        "encryption",
        "intelligent-tiering",
        "inventory",
        "legal-hold",
        "lifecycle",
        "logging",
        "metrics",
        "notification",
        "object-lock",
        "ownershipControls",
        "policy",
        "policyStatus",
        "publicAccessBlock",
        "replication",
        "requestPayment",
        "restore",
        "retention",
        "select",
        "tagging",
        "torrent",
        "versions",
        "website",
    }
)
# "Actions, resources, and condition keys for Amazon S3", Service Authorization Reference.
ACTIONS = {
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "CompleteMultipartUpload": "s3:PutObject",
    "CopyObject": "s3:PutObject",
    "CreateBucket": "s3:CreateBucket",
    "CreateMultipartUpload": "s3:PutObject",
    "DeleteBucket": "s3:DeleteBucket",
    "DeleteObject": "s3:DeleteObject",
    "DeleteObjects": "s3:DeleteObject",
    "GetBucketLocation": "s3:GetBucketLocation",
    "GetObject": "s3:GetObject",
    "GetObjectTagging": "s3:GetObjectTagging",
    "HeadBucket": "s3:ListBucket",
    "HeadObject": "s3:GetObject",
    "ListBuckets": "s3:ListAllMyBuckets",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListObjectsV2": "s3:ListBucket",
    "ListParts": "s3:ListMultipartUploadParts",
    "PutObject": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "UploadPartCopy": "s3:PutObject",
}


class Permissions:
    """What the server's users may do: everything at first."""

    def __init__(self) -> None:
        self._allowed: frozenset[str] | None = None
        self._denied: list[tuple[str, str]] = []

    def deny(self, actions: Iterable[str], key: str = "*") -> None:
        """Refuse *actions* from now on, for keys like *key* (`*` and `?` as in a policy)."""
        self._denied += [(action, key) for action in actions]

    def allow_only(self, actions: Iterable[str] | None) -> None:
        """Refuse all but *actions*, and forget what was denied; None allows everything again."""
        self._allowed = None if actions is None else frozenset(actions)
        self._denied = []

    def permits(self, action: str, key: str = "") -> bool:
        """Whether *action* is allowed for *key*."""
        if self._allowed is not None and action not in self._allowed:
            return False
        return not any(action == denied and fnmatchcase(key, pattern) for denied, pattern in self._denied)


def route(request: Request) -> None:
    """Set operation, bucket and key of *request*.

    Raises:
        S3Error: the key is none.
    """
    host = request.headers.get("host", "").rsplit(":", 1)[0]
    if host.endswith(".localhost"):
        request.path = f"/{host.removesuffix('.localhost')}{request.path}"
    bucket, _, key = request.path[1:].partition("/")
    request.bucket = bucket
    request.operation = _operation(request.method, request.query, request.headers, bool(bucket), bool(key))
    raw = unquote_to_bytes(key)
    try:
        request.key = raw.decode()
    except UnicodeDecodeError as error:
        raise S3Error("InvalidURI", 400, "Couldn't parse the specified URI.", URI=request.path) from error
    if len(raw) > 1024:
        raise S3Error("KeyTooLongError", 400, "Your key is too long", Size=len(raw), MaxSizeAllowed=1024)


def _operation(method: str, query: dict[str, str], headers: dict[str, str], bucket: bool, key: bool) -> str:
    if query.keys() == {"tagging"} and method == "GET" and key:
        return "GetObjectTagging"
    if not _SUBRESOURCES.isdisjoint(query) or ("partNumber" in query and "uploadId" not in query):
        return UNKNOWN
    if not bucket:
        return "ListBuckets" if method == "GET" else UNKNOWN
    if not key:
        return _of_bucket(method, query)
    if method == "GET":
        return "ListParts" if "uploadId" in query else "GetObject"
    if method == "HEAD":
        return "HeadObject"
    if method == "DELETE":
        return "AbortMultipartUpload" if "uploadId" in query else "DeleteObject"
    if method == "POST":
        if "uploads" in query:
            return "CreateMultipartUpload"
        return "CompleteMultipartUpload" if "uploadId" in query else UNKNOWN
    if method == "PUT":
        part, copy = "uploadId" in query, "x-amz-copy-source" in headers
        return (
            ("UploadPartCopy" if copy else "UploadPart") if part else ("CopyObject" if copy else "PutObject")
        )
    return UNKNOWN


def _of_bucket(method: str, query: dict[str, str]) -> str:
    if method == "GET":
        if "uploads" in query:
            return "ListMultipartUploads"
        if "location" in query:
            return "GetBucketLocation"
        return "ListObjectsV2" if query.get("list-type") == "2" else UNKNOWN
    if method == "POST":
        return "DeleteObjects" if "delete" in query else UNKNOWN
    if "versioning" in query:
        return UNKNOWN
    return {"PUT": "CreateBucket", "HEAD": "HeadBucket", "DELETE": "DeleteBucket"}.get(method, UNKNOWN)


def needed(request: Request) -> tuple[tuple[str, str], ...]:
    """The IAM actions that *request* needs, the main one first, each with its key."""
    action = ACTIONS.get(request.operation, f"s3:{request.operation}")
    if "versionId" in request.query and request.operation in {"GetObject", "HeadObject", "DeleteObject"}:
        action += "Version"
    main = (action, request.key)
    if request.operation in {"CopyObject", "UploadPartCopy"}:
        _, key, version = copy_source(request)
        return main, ("s3:GetObjectVersion" if version else "s3:GetObject", key)
    if request.operation == "DeleteObject" and "if-match" in request.headers:
        return main, (
            "s3:GetObject",
            request.key,
        )  # "How to perform conditional deletes", Amazon S3 User Guide
    return (main,)


def copy_source(request: Request) -> tuple[str, str, str | None]:
    """The bucket, key and version that x-amz-copy-source names."""
    path, _, query = request.headers["x-amz-copy-source"].partition("?")
    bucket, _, key = unquote_to_bytes(path).decode("utf-8", "replace").removeprefix("/").partition("/")
    version = query.removeprefix("versionId=") or None
    if not bucket or not key:
        raise S3Error(
            "InvalidArgument",
            400,
            "Copy Source must mention the source bucket and key: sourcebucket/sourcekey",
            ArgumentName="x-amz-copy-source",
            ArgumentValue=request.headers["x-amz-copy-source"],
        )
    return bucket, key, version
