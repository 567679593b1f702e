"""Errors of S3, boto3 and the network, and our errors for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from storage_backend.backends.s3.file_parts import FileChangedError
from storage_backend.backends.s3.xml_documents import EmbeddedError, ErrorDocument, UnexpectedResponseError
from storage_backend.errors import (
    AccessDeniedError,
    AuthenticationError,
    BucketNotFoundError,
    ConfigurationError,
    IntegrityError,
    InvalidIdentifierError,
    NotFoundError,
    PreconditionFailedError,
    QuotaExceededError,
    RateLimitedError,
    SourceChangedError,
    StorageError,
    StorageTimeoutError,
    UnavailableError,
    UnsupportedOperationError,
)


@dataclass(eq=False)
class S3ResponseError(Exception):
    """An error response of S3.

    Attributes:
        status: the HTTP status.
        code: the error code ("Error responses", Amazon S3 API Reference); "" without a document, as for HEAD.
        message: the service's message.
        region: the region of the bucket, if the response names it.
        retry_after: the Retry-After in seconds, if there was one.
        attempts: requests made.
        server_time: the Date of the response, in seconds since the epoch; None without one.
        redirected: the Location header of a redirect.
    """

    status: int
    code: str = ""
    message: str = ""
    _: KW_ONLY
    region: str | None = None
    retry_after: float | None = None
    attempts: int = 1
    server_time: float | None = None
    redirected: str | None = None

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message}"

    @classmethod
    def inside(cls, refused: ErrorDocument, status: int = 200) -> S3ResponseError:
        """The error of a document that came with a success status, or of one key of a batch."""
        return cls(status, refused.code, refused.message, region=refused.region)


@dataclass(eq=False)
class UnreachableError(Exception):
    """The network failed at every attempt.

    Attributes:
        cause: the last failure.
        attempts: requests made.
    """

    cause: Exception
    attempts: int

    def __str__(self) -> str:
        return str(self.cause)


@dataclass(frozen=True, slots=True)
class ErrorRule:
    """What an error code or status means.

    Attributes:
        kind: the class of our error.
        advice: what the user can do, appended to the service's message.
        parameter: the name of the wrong parameter, for a ConfigurationError.
    """

    kind: type[StorageError]
    advice: str = ""
    parameter: str | None = None


_DENIED = ErrorRule(
    AccessDeniedError,
    "the credentials lack the permission for this; without s3:ListBucket a missing object gives the same response",
)
_KEY = ErrorRule(AuthenticationError, "check access_key and secret_key, or the profile")
_EXPIRED = ErrorRule(
    AuthenticationError, "the session has expired; renew the credentials (such as by `aws sso login`)"
)
_CLOCK = ErrorRule(AuthenticationError, "the clock of this machine is wrong; set it")
_REGION = ErrorRule(ConfigurationError, "the bucket is in another region; set region to that")
_SLOW = ErrorRule(RateLimitedError)
_DOWN = ErrorRule(UnavailableError)
_DAMAGED = ErrorRule(
    IntegrityError, "the content was damaged in transit, or its file changed; nothing was stored"
)
_FULL = ErrorRule(QuotaExceededError)

# "List of error codes", Amazon S3 API Reference; XMinio... are MinIO's.
BY_CODE: Mapping[str, ErrorRule] = {
    "AccessDenied": _DENIED,
    "AccountProblem": _DENIED,
    "AllAccessDisabled": _DENIED,
    "AuthorizationHeaderMalformed": _REGION,
    "BadDigest": _DAMAGED,
    "ConditionalRequestConflict": ErrorRule(UnavailableError, "another write to the object was under way"),
    "EntityTooLarge": ErrorRule(UnsupportedOperationError),
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "IllegalLocationConstraintException": _REGION,
    "InternalError": _DOWN,
    "InvalidAccessKeyId": _KEY,
    "InvalidBucketName": ErrorRule(ConfigurationError, "check the name of the bucket"),
    "InvalidDigest": _DAMAGED,
    "InvalidObjectState": ErrorRule(StorageError, "the object is archived; restore it first"),
    "InvalidToken": _EXPIRED,
    "KeyTooLongError": ErrorRule(InvalidIdentifierError),
    "NoSuchBucket": ErrorRule(
        BucketNotFoundError, "check its name and the endpoint, or create it (create_bucket=True does)"
    ),
    "NoSuchKey": ErrorRule(NotFoundError),
    "NoSuchUpload": ErrorRule(StorageError, "somebody else has aborted the upload; nothing was stored"),
    "NoSuchVersion": ErrorRule(NotFoundError),
    "NotImplemented": ErrorRule(UnsupportedOperationError),
    "OperationAborted": _DOWN,
    "PermanentRedirect": _REGION,
    "PreconditionFailed": ErrorRule(PreconditionFailedError, "the object has changed"),
    "QuotaExceeded": _FULL,
    "RequestExpired": _CLOCK,
    "RequestTimeTooSkewed": _CLOCK,
    "RequestTimeout": ErrorRule(StorageTimeoutError),
    "ServiceUnavailable": _DOWN,
    "SignatureDoesNotMatch": _KEY,
    "SlowDown": _SLOW,
    "Throttling": _SLOW,
    "ThrottlingException": _SLOW,
    "TokenRefreshRequired": _EXPIRED,
    "TooManyRequests": _SLOW,
    "UnauthorizedAccess": _DENIED,
    "XAmzContentChecksumMismatch": _DAMAGED,
    "XAmzContentSHA256Mismatch": _DAMAGED,
    "XMinioAdminBucketQuotaExceeded": _FULL,
    "XMinioStorageFull": _FULL,
}
BY_STATUS: Mapping[int, ErrorRule] = {
    301: _REGION,
    307: _REGION,
    401: _KEY,
    403: _DENIED,
    404: ErrorRule(NotFoundError),
    405: ErrorRule(UnsupportedOperationError),
    408: ErrorRule(StorageTimeoutError),
    409: _DOWN,
    412: ErrorRule(PreconditionFailedError, "the object has changed"),
    413: ErrorRule(UnsupportedOperationError),
    429: _SLOW,
    501: ErrorRule(UnsupportedOperationError),
    503: _SLOW,
    507: _FULL,
}
DAMAGED = frozenset(code for code, rule in BY_CODE.items() if rule is _DAMAGED)
# An access key that was rotated becomes unknown.
STALE_CREDENTIALS = frozenset(code for code, rule in BY_CODE.items() if rule is _EXPIRED) | {
    "InvalidAccessKeyId"
}
WRONG_CLOCK = frozenset(code for code, rule in BY_CODE.items() if rule is _CLOCK)


def rule_of(status: int, code: str) -> ErrorRule:
    """The rule for an error: by its code if that is known, else by its status."""
    found = BY_CODE.get(code) or BY_STATUS.get(status)
    if found is not None:
        return found
    return _DOWN if status >= 500 else ErrorRule(StorageError)


def response_error_of(error: BaseException | None) -> S3ResponseError | None:
    """The error response behind *error*, ours or botocore's ClientError; None if *error* is something else."""
    if isinstance(error, S3ResponseError):
        # A copy, since the caller's frame may be in the error's own traceback, which would make a cycle.
        return replace(error)
    response = getattr(error, "response", None)
    if not isinstance(response, dict) or "Error" not in response:
        return None
    about = response.get("ResponseMetadata", {})
    headers = about.get("HTTPHeaders", {})
    code = str(response["Error"].get("Code", ""))
    # A HEAD has no error document; botocore puts the status in place of the code.
    status = about.get("HTTPStatusCode") or (
        int(code) if code.isdecimal() else 404 if code.startswith("NoSuch") else 400
    )
    return S3ResponseError(
        status,
        "" if code.isdecimal() else code,
        str(response["Error"].get("Message", "")),
        region=response["Error"].get("Region") or headers.get("x-amz-bucket-region"),
        retry_after=seconds_of(headers.get("retry-after")),
        attempts=about.get("RetryAttempts", 0) + 1,
        redirected=headers.get("location"),
    )


def is_refusal(error: BaseException | None, *reasons: int | str) -> bool:
    """Whether *error* is an error response with one of these HTTP statuses or S3 error codes."""
    response = response_error_of(error)
    return response is not None and (response.status in reasons or response.code in reasons)


def seconds_of(retry_after: str | None) -> float | None:
    """The seconds in a Retry-After header; None if it is absent or a date."""
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else None


def is_foreign(error: Exception) -> bool:
    """Whether *error* came from S3, boto3 or the network, not from the caller's reader or a bug of this package."""
    if isinstance(
        error, S3ResponseError | UnreachableError | EmbeddedError | UnexpectedResponseError | FileChangedError
    ):
        return True
    return type(error).__module__.partition(".")[0] in {"boto3", "botocore", "urllib3"}


def translate(error: Exception, identifier: str | None, where: str, operation: str) -> StorageError:
    """Translate an error of S3, boto3 or the network.

    Args:
        error: the original error.
        identifier: the object's identifier.
        where: the storage's location.
        operation: the operation, such as "read" an object, or "list objects in" the location.
    """
    if isinstance(error, StorageError):
        return error
    context = f"{operation} {identifier!r} in" if identifier is not None else operation
    fields: dict[str, Any] = {
        "identifier": identifier,
        "backend": where,
        "attempts": getattr(error, "attempts", 1),
    }
    if isinstance(error, EmbeddedError):
        error = S3ResponseError.inside(error.refused)
    refusal = response_error_of(error)
    if refusal is not None:
        return _from_response(refusal, context, where, {**fields, "attempts": refusal.attempts})
    if isinstance(error, FileChangedError):
        return SourceChangedError(f"cannot {context} {where}: {error}; nothing was stored", **fields)
    if isinstance(error, UnexpectedResponseError):
        return StorageError(
            f"cannot {context} {where}: not a response of S3: {error}; check endpoint_url, and whether a proxy or a portal "
            "responded in place of the service",
            **fields,
        )
    return _from_network(error, context, where, fields)


def _from_response(error: S3ResponseError, context: str, where: str, fields: dict[str, Any]) -> StorageError:
    rule = rule_of(error.status, error.code)
    if rule.kind is NotFoundError and fields["identifier"] is not None:
        return NotFoundError(f"no object {fields['identifier']!r} in {where}", **fields)
    if 300 <= error.status < 400 and error.redirected and not error.region and not error.code:
        return _from_redirect(error.status, error.redirected, context, where, fields)
    words = f"{error.code or f'HTTP status {error.status}'}{f' ({error.message})' if error.message else ''}"
    if rule is _REGION and error.region:
        advice = f"the bucket is in region {error.region}; set region={error.region!r}"
    else:
        advice = rule.advice
    message = f"cannot {context} {where}: {words}{f'; {advice}' if advice else ''}"
    if issubclass(rule.kind, ConfigurationError):
        fields["parameter"] = "region" if rule is _REGION else "bucket"
    if issubclass(rule.kind, RateLimitedError):
        fields["retry_after"] = error.retry_after
    return rule.kind(message, **fields)


def _from_redirect(
    status: int, location: str, context: str, where: str, fields: dict[str, Any]
) -> StorageError:
    parts = urlsplit(location)
    # A query may hold a signature, and the part before "@" a password.
    host = parts.netloc.rpartition("@")[2]
    shown = f"{parts.scheme}://{host}{parts.path}" if host else parts.path
    advice = f'set endpoint_url="{parts.scheme}://{host}"' if host else "check endpoint_url"
    return ConfigurationError(
        f"cannot {context} {where}: HTTP status {status}, and the Location {shown!r} instead; {advice}",
        parameter="endpoint_url",
        **fields,
    )


# botocore's exceptions by name, so that botocore is not imported only to compare types.
_BY_NAME: Mapping[str, ErrorRule] = {
    "ConnectTimeoutError": ErrorRule(StorageTimeoutError),
    "ConnectionClosedError": _DOWN,
    "ConnectionError": _DOWN,
    "CredentialRetrievalError": ErrorRule(
        AuthenticationError, "the source of the credentials does not respond"
    ),
    "EndpointConnectionError": _DOWN,
    "HTTPClientError": _DOWN,
    "IncompleteRead": _DOWN,
    "IncompleteReadError": _DOWN,
    "FlexibleChecksumError": ErrorRule(IntegrityError),
    "InvalidConfigError": ErrorRule(ConfigurationError),
    "InvalidRegionError": ErrorRule(ConfigurationError, "check region", "region"),
    "NoCredentialsError": ErrorRule(
        AuthenticationError,
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, log in, set profile, or set anonymous=True",
    ),
    "NoRegionError": ErrorRule(ConfigurationError, "set region", "region"),
    "ParamValidationError": ErrorRule(ConfigurationError),
    "PartialCredentialsError": ErrorRule(AuthenticationError),
    "ProfileNotFound": ErrorRule(ConfigurationError, "see ~/.aws/config", "profile"),
    "ProtocolError": _DOWN,  # urllib3's
    "ProxyConnectionError": _DOWN,
    "ReadTimeoutError": ErrorRule(StorageTimeoutError),
    "ResponseStreamingError": _DOWN,
    "SSLError": ErrorRule(
        AuthenticationError,
        "the server's certificate is not trusted; set ca_bundle to the certificate of its authority",
    ),
    "SSOTokenLoadError": _EXPIRED,
    "TokenRetrievalError": _EXPIRED,
    "UnauthorizedSSOTokenError": _EXPIRED,
    "UnknownEndpointError": ErrorRule(ConfigurationError),
}


def _from_network(error: Exception, context: str, where: str, fields: dict[str, Any]) -> StorageError:
    cause = error.cause if isinstance(error, UnreachableError) else error
    rule = next((_BY_NAME[kind.__name__] for kind in type(cause).__mro__ if kind.__name__ in _BY_NAME), None)
    if rule is _BY_NAME["SSLError"] and "CERTIFICATE_VERIFY_FAILED" not in str(cause):
        rule = ErrorRule(UnavailableError, "if this always happens, the endpoint does not speak https")
    elif isinstance(cause, TimeoutError):
        rule = ErrorRule(StorageTimeoutError)
    elif rule is None:
        rule = _DOWN if isinstance(cause, OSError) else ErrorRule(StorageError)
    if issubclass(rule.kind, ConfigurationError):
        fields["parameter"] = rule.parameter
        if "bucket name" in str(cause).lower():
            fields["parameter"] = "bucket"  # the only parameter that botocore checks
    advice = f"; {rule.advice}" if rule.advice else ""
    # strerror has no "[Errno 111]" before it.
    words = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return rule.kind(f"cannot {context} {where}: {words}{advice}", **fields)
