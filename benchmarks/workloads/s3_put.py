"""PUT objects of 4 KiB, one by one."""

from __future__ import annotations

from benchmarks.harness import OURS
from benchmarks.servers import RCLONE
from benchmarks.workloads import s3_single as of

WORKLOAD = of.workload(
    title="PUT an object of 4 KiB",
    what=f"{of.SAID} {{objects:,}} names, each overwritten. Ours sends an MD5 that the server checks; the others send none.",
    server=RCLONE,
    requests=(
        (OURS, of.ours_put, "boto3"),
        ("boto3 put_object", of.boto3_put, "boto3"),
        ("s3fs pipe_file", of.s3fs_put, "s3fs"),
        ("obstore put", of.obstore_put, "obstore"),
        ("opendal write", of.opendal_put, "opendal"),
        ("cloudpathlib write_bytes", of.cloudpathlib_put, "cloudpathlib"),
        ("smart_open write", of.smart_open_put, "smart_open"),
        ("multi-storage-client write", of.multi_storage_client_put, "multistorageclient"),
    ),
    targets={"boto3 put_object": 2.5, "obstore put": 0.6},
)
