"""S3 clients, ours and those of the peers, set up and tuned as their documentation says.

The server's buckets are the directories beneath `Place.root`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks import programs
from benchmarks.finding import find_program
from benchmarks.harness import Pass, Place, peer
from benchmarks.servers import ACCESS_KEY, REGION, SECRET_KEY

if TYPE_CHECKING:
    from storage_backend import S3Storage

SHARED, SCRATCH = "shared", "scratch"
THREADS = 16  # of each contender that can be set; our default


def ours(place: Place, bucket: str = SHARED, prefix: str = "") -> S3Storage:
    """Our storage, with its client built."""
    from storage_backend import S3Storage

    storage = S3Storage(
        bucket,
        prefix,
        endpoint_url=place.endpoint,
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
        region=REGION,
    )
    _ = storage.client
    return storage


def boto3(place: Place) -> Any:
    """A client without checksums that the server does not know, and with a connection for each thread."""
    config = peer("botocore.config").Config(**_CHECKSUMS, max_pool_connections=THREADS)
    return peer("boto3").client("s3", config=config, **_credentials(place))


def s3fs(place: Place) -> Any:
    """The file system of s3fs; it takes "bucket/key". Without its cache of listings, which would answer most requests."""
    return peer("s3fs").S3FileSystem(
        key=ACCESS_KEY,
        secret=SECRET_KEY,
        endpoint_url=place.endpoint,
        client_kwargs={"region_name": REGION},
        config_kwargs={**_CHECKSUMS, "max_pool_connections": THREADS},
        use_listings_cache=False,
    )


def obstore(place: Place, bucket: str = SHARED) -> Any:
    """The store of obstore."""
    return peer("obstore.store").S3Store(
        bucket,
        endpoint=place.endpoint,
        access_key_id=ACCESS_KEY,
        secret_access_key=SECRET_KEY,
        region=REGION,
        client_options={"allow_http": True},
    )


def opendal(place: Place, bucket: str = SHARED) -> Any:
    """The operator of opendal."""
    return peer("opendal").Operator(
        "s3",
        bucket=bucket,
        endpoint=place.endpoint,
        access_key_id=ACCESS_KEY,
        secret_access_key=SECRET_KEY,
        region=REGION,
        disable_config_load="true",
        disable_ec2_metadata="true",
    )


def cloudpathlib(place: Place) -> Any:
    """The client of cloudpathlib; it makes paths of "s3://bucket/key". It deletes its cached copy after each read."""
    session = peer("boto3").Session(
        aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY, region_name=REGION
    )
    return peer("cloudpathlib").S3Client(
        boto3_session=session,
        endpoint_url=place.endpoint,
        file_cache_mode="close_file",
        local_cache_dir=place.scratch / "cloudpathlib",
    )


def multi_storage_client(place: Place, bucket: str = SHARED) -> Any:
    """The client of NVIDIA's multi-storage-client; it takes keys."""
    module = peer("multistorageclient")
    options = {"base_path": bucket, "endpoint_url": place.endpoint, "region_name": REGION, **_CHECKSUMS}
    credentials = {"access_key": ACCESS_KEY, "secret_key": SECRET_KEY}
    config = {
        "profiles": {
            "benchmarks": {
                "storage_provider": {"type": "s3", "options": options},
                "credentials_provider": {"type": "S3Credentials", "options": credentials},
            }
        }
    }
    return module.StorageClient(module.StorageClientConfig.from_dict(config, profile="benchmarks"))


def s5cmd(place: Place, *arguments: str) -> Pass:
    """`s5cmd` with these arguments and its own defaults."""
    return programs.command(
        place,
        find_program("s5cmd") or "s5cmd",
        "--endpoint-url",
        place.endpoint,
        *arguments,
        AWS_ACCESS_KEY_ID=ACCESS_KEY,
        AWS_SECRET_ACCESS_KEY=SECRET_KEY,
        AWS_REGION=REGION,
    )


def rclone(place: Place, *arguments: str) -> Pass:
    """`rclone` with these arguments, and as many transfers as the others have threads (its default is 4).

    Paths are "s3:bucket/key".
    """
    return programs.rclone(
        place,
        "--transfers",
        str(THREADS),
        "--checkers",
        str(THREADS),
        *arguments,
        RCLONE_CONFIG_S3_TYPE="s3",
        RCLONE_CONFIG_S3_PROVIDER="Other",
        RCLONE_CONFIG_S3_ENDPOINT=place.endpoint,
        RCLONE_CONFIG_S3_ACCESS_KEY_ID=ACCESS_KEY,
        RCLONE_CONFIG_S3_SECRET_ACCESS_KEY=SECRET_KEY,
        RCLONE_CONFIG_S3_REGION=REGION,
    )


# By default boto3 sends and expects CRCs that the server does not know.
_CHECKSUMS = {
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}


def _credentials(place: Place) -> dict[str, str]:
    return {
        "endpoint_url": place.endpoint,
        "aws_access_key_id": ACCESS_KEY,
        "aws_secret_access_key": SECRET_KEY,
        "region_name": REGION,
    }
