"""Shared by the workloads of single S3 requests: GET, HEAD and PUT of 4 KiB by each contender."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks import data, s3
from benchmarks.harness import OURS, Comparison, Contender, Pass, Place, Workload, each, expect, peer
from benchmarks.servers import Server
from benchmarks.workloads import single

CONTENT = data.content()
SAID = (
    "One thread, one request after the other, to `rclone serve s3` in a process of its own. "
    "Times are per request."
)

# Given the place, a function of a key in the bucket.
Request = Callable[[Place], Callable[[str], Any]]


def ours_get(place: Place) -> Callable[[str], bytes]:
    return s3.ours(place).read


def boto3_get(place: Place) -> Callable[[str], bytes]:
    client = s3.boto3(place)

    def get(key: str) -> bytes:
        found: bytes = client.get_object(Bucket=s3.SHARED, Key=key)["Body"].read()
        return found

    return get


def s3fs_get(place: Place) -> Callable[[str], bytes]:
    files = s3.s3fs(place)
    return lambda key: files.cat_file(f"{s3.SHARED}/{key}")


def obstore_get(place: Place) -> Callable[[str], bytes]:
    store = s3.obstore(place)
    return lambda key: store.get(key).bytes()


def opendal_get(place: Place) -> Callable[[str], bytes]:
    read: Callable[[str], bytes] = s3.opendal(place).read
    return read


def cloudpathlib_get(place: Place) -> Callable[[str], bytes]:
    client = s3.cloudpathlib(place)
    return lambda key: client.CloudPath(f"s3://{s3.SHARED}/{key}").read_bytes()


def smart_open_get(place: Place) -> Callable[[str], bytes]:
    # As its documentation advises: without `defer_seek` each object is asked for twice.
    parameters = {"client": s3.boto3(place), "defer_seek": True}
    opened = peer("smart_open").open

    def get(key: str) -> bytes:
        with opened(f"s3://{s3.SHARED}/{key}", "rb", transport_params=parameters) as reader:
            found: bytes = reader.read()
        return found

    return get


def multi_storage_client_get(place: Place) -> Callable[[str], bytes]:
    read: Callable[[str], bytes] = s3.multi_storage_client(place).read
    return read


def ours_head(place: Place) -> Callable[[str], int]:
    return s3.ours(place).size


def boto3_head(place: Place) -> Callable[[str], int]:
    client = s3.boto3(place)
    return lambda key: client.head_object(Bucket=s3.SHARED, Key=key)["ContentLength"]


def s3fs_head(place: Place) -> Callable[[str], int]:
    files = s3.s3fs(place)
    return lambda key: files.size(f"{s3.SHARED}/{key}")


def obstore_head(place: Place) -> Callable[[str], int]:
    store = s3.obstore(place)
    return lambda key: store.head(key)["size"]


def opendal_head(place: Place) -> Callable[[str], int]:
    operator = s3.opendal(place)
    return lambda key: operator.stat(key).content_length


def cloudpathlib_head(place: Place) -> Callable[[str], int]:
    client = s3.cloudpathlib(place)
    return lambda key: client.CloudPath(f"s3://{s3.SHARED}/{key}").stat().st_size


def multi_storage_client_head(place: Place) -> Callable[[str], int]:
    client = s3.multi_storage_client(place)
    return lambda key: client.info(key).content_length


def ours_put(place: Place) -> Callable[[str], Any]:
    storage = s3.ours(place, s3.SCRATCH)
    return lambda key: storage.write(key, CONTENT)


def boto3_put(place: Place) -> Callable[[str], Any]:
    client = s3.boto3(place)
    return lambda key: client.put_object(Bucket=s3.SCRATCH, Key=key, Body=CONTENT)


def s3fs_put(place: Place) -> Callable[[str], Any]:
    files = s3.s3fs(place)
    return lambda key: files.pipe_file(f"{s3.SCRATCH}/{key}", CONTENT)


def obstore_put(place: Place) -> Callable[[str], Any]:
    store = s3.obstore(place, s3.SCRATCH)
    return lambda key: store.put(key, CONTENT)


def opendal_put(place: Place) -> Callable[[str], Any]:
    operator = s3.opendal(place, s3.SCRATCH)
    return lambda key: operator.write(key, CONTENT)


def cloudpathlib_put(place: Place) -> Callable[[str], Any]:
    client = s3.cloudpathlib(place)
    return lambda key: client.CloudPath(f"s3://{s3.SCRATCH}/{key}").write_bytes(CONTENT)


def smart_open_put(place: Place) -> Callable[[str], Any]:
    # As its documentation advises for small objects: else each is an upload in parts.
    parameters = {"client": s3.boto3(place), "multipart_upload": False}
    opened = peer("smart_open").open

    def put(key: str) -> None:
        with opened(f"s3://{s3.SCRATCH}/{key}", "wb", transport_params=parameters) as writer:
            writer.write(CONTENT)

    return put


def multi_storage_client_put(place: Place) -> Callable[[str], Any]:
    client = s3.multi_storage_client(place, s3.SCRATCH)
    return lambda key: client.write(key, CONTENT)


def keys(place: Place) -> list[str]:
    """Of the objects in the shared bucket."""
    return [f"{single.folder(place).name}/{name}" for name in single.identifiers(place)]


def putting(place: Place, put: Callable[[str], Any]) -> Pass:
    """A pass over the same names each time: the first, which does not count, makes them."""
    return each(put, [f"put/{index:06}.bin" for index in range(place.scale.objects)])


def check_get(_place: Place, result: Any) -> None:
    expect(len(result) == data.SMALL, f"read {len(result)} bytes")


def check_head(_place: Place, result: Any) -> None:
    expect(result == data.SMALL, f"{result} is not the size")


def check_put(place: Place, _result: Any) -> None:
    total = place.scale.objects
    expect(data.contents(place.scratch / "put") == (total, total * data.SMALL), "not all is there")


def workload(
    title: str,
    what: str,
    server: Server,
    requests: Iterable[tuple[str, Request, str]],
    targets: dict[str, float],
) -> Workload:
    """The workload of these contenders (name, request, module); *targets* are those of ours against some of them."""
    kind = {"get": check_get, "head": check_head, "put": check_put}[
        title.partition(" ")[0].rstrip(":").lower()
    ]

    def contender(name: str, request: Request, module: str) -> Contender:
        def prepare(place: Place) -> Pass:
            call = request(place)
            return putting(place, call) if kind is check_put else each(call, keys(place))

        return Contender(name, prepare, module=module)

    contenders = [contender(*one) for one in requests]
    return Workload(
        title=title,
        what=what,
        contenders=(*contenders,),
        setup=single.setup,
        check=kind,
        operations=single.operations,
        loop=True,
        rounds=7,
        comparisons=tuple(
            Comparison(OURS, one.name, targets.get(one.name)) for one in contenders if one.name != OURS
        ),
        server=server,
    )
