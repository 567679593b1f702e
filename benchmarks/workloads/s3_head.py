"""HEAD: the sizes of objects, one by one."""

from __future__ import annotations

from benchmarks.harness import OURS
from benchmarks.servers import RCLONE
from benchmarks.workloads import s3_single as of

REQUESTS = (
    (OURS, of.ours_head, "boto3"),
    ("boto3 head_object", of.boto3_head, "boto3"),
    ("s3fs size", of.s3fs_head, "s3fs"),
    ("obstore head", of.obstore_head, "obstore"),
    ("opendal stat", of.opendal_head, "opendal"),
    ("cloudpathlib stat", of.cloudpathlib_head, "cloudpathlib"),
    ("multi-storage-client info", of.multi_storage_client_head, "multistorageclient"),
)
TARGETS = {"boto3 head_object": 4.0, "obstore head": 0.6}

WORKLOAD = of.workload(
    title="HEAD: the size of an object",
    what=f"{of.SAID} {{objects:,}} objects in turn. smart_open has no such request.",
    server=RCLONE,
    requests=REQUESTS,
    targets=TARGETS,
)
