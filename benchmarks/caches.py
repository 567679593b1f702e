"""Our cache and those of the peers, set up and tuned as their documentation says.

All of them keep their files beneath `Place.scratch`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import peer

if TYPE_CHECKING:
    from storage_backend import CachedStorage, StorageBackend

DISKCACHE = "diskcache, LRU"
FILECACHE = "fsspec filecache"
SIMPLECACHE = "fsspec simplecache"
BLOCKCACHE = "fsspec blockcache"
MULTI_STORAGE = "multi-storage-client"
UNLIMITED = 1 << 40  # bytes; diskcache's own default is 1 GiB


def ours(
    folder: Path, cache: Path, limit: int | None = None, backend: StorageBackend | None = None
) -> CachedStorage:
    """Ours, over LocalStorage unless a backend is given; *limit* in bytes."""
    from storage_backend import CachedStorage, LocalStorage

    return CachedStorage(
        LocalStorage(folder) if backend is None else backend,
        cache,
        max_cache_size_mb=None if limit is None else limit / (1 << 20),
    )


def diskcache(cache: Path, limit: int = UNLIMITED) -> Any:
    """python-diskcache with values in files and LRU eviction."""
    return peer("diskcache").Cache(
        str(cache),
        eviction_policy="least-recently-used",
        disk_min_file_size=0,
        cull_limit=10,
        size_limit=limit,
    )


def put(cache: Any, key: str, path: str) -> None:
    """Store the content of a file in diskcache."""
    with open(path, "rb") as file:
        cache.set(key, file, read=True)


def fsspec(kind: str, cache: Path, target: Any = None) -> Any:
    """A caching file system of fsspec ("filecache", "simplecache", "blockcache"), by default over local files."""
    source = {"target_protocol": "file"} if target is None else {"fs": target}
    return peer("fsspec").filesystem(kind, cache_storage=str(cache), **source)


def multi_storage_client(cache: Path) -> tuple[Any, Any]:
    """The client of NVIDIA's multi-storage-client, and its cache.

    It does not cache local files, so its backend is an S3 endpoint that is never reached. It does not check versions.
    """
    module = peer("multistorageclient")
    config = module.StorageClientConfig.from_dict(
        {
            "profiles": {
                "benchmarks": {
                    "storage_provider": {
                        "type": "s3",
                        "options": {
                            "base_path": "shared",
                            "endpoint_url": "http://127.0.0.1:9",
                            "region_name": "us-east-1",
                        },
                    },
                    "credentials_provider": {
                        "type": "S3Credentials",
                        "options": {"access_key": "nobody", "secret_key": "nothing"},
                    },
                    "caching_enabled": True,
                }
            },
            "cache": {
                "size": "100G",
                "location": str(cache),
                "check_source_version": False,
                "eviction_policy": {"policy": "lru"},
            },
        },
        profile="benchmarks",
    )
    client = module.StorageClient(config)
    return client, config.cache_manager


def file_system(root: Path, opening: Any = None) -> Any:
    """An fsspec file system over files beneath *root* that fetches ranges, as those over a network do.

    fsspec's own local file system bypasses a block cache.

    Args:
        root: of the files; paths are relative to it.
        opening: called at the beginning of each fetch.
    """
    spec = peer("fsspec.spec")

    def fetch(self: Any, start: int, end: int) -> bytes:
        with open(f"{root}/{self.path}", "rb") as file:
            file.seek(start)
            return file.read(end - start)

    def opened(self: Any, path: str, mode: str = "rb", **settings: Any) -> Any:
        if opening is not None:
            opening()
        return reader(self, path, mode, **settings)

    def info(_self: Any, path: str, **_settings: Any) -> dict[str, Any]:
        return {"name": path, "size": os.stat(f"{root}/{path}").st_size, "type": "file"}

    reader = type("Reader", (spec.AbstractBufferedFile,), {"_fetch_range": fetch})
    system = type(
        "Ranged",
        (spec.AbstractFileSystem,),
        {"protocol": "ranged", "cachable": False, "_open": opened, "info": info},
    )
    return system()
