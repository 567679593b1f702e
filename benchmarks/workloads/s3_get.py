"""GET objects of 4 KiB, one by one."""

from __future__ import annotations

from benchmarks.harness import OURS
from benchmarks.servers import RCLONE
from benchmarks.workloads import s3_single as of

REQUESTS = (
    (OURS, of.ours_get, "boto3"),
    ("boto3 get_object", of.boto3_get, "boto3"),
    ("s3fs cat_file", of.s3fs_get, "s3fs"),
    ("obstore get", of.obstore_get, "obstore"),
    ("opendal read", of.opendal_get, "opendal"),
    ("cloudpathlib read_bytes", of.cloudpathlib_get, "cloudpathlib"),
    ("smart_open read", of.smart_open_get, "smart_open"),
    ("multi-storage-client read", of.multi_storage_client_get, "multistorageclient"),
)
TARGETS = {"boto3 get_object": 3.0, "obstore get": 0.6}

WORKLOAD = of.workload(
    title="GET an object of 4 KiB",
    what=f"{of.SAID} {{objects:,}} objects in turn. cloudpathlib copies each into a file first.",
    server=RCLONE,
    requests=REQUESTS,
    targets=TARGETS,
)
