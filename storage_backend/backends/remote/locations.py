"""Where a RemoteStorage is, as a URL without secrets."""

from __future__ import annotations

from storage_backend import locations
from storage_backend.backends.remote.settings import Settings


def location_for(settings: Settings, base_dir: str) -> str:
    """`ssh://user@host1:22,host2:2222/~/folder`, percent-encoded; "~" stands for the home directory."""
    hosts = ",".join(
        f"[{endpoint.host}]:{endpoint.port}" if ":" in endpoint.host else f"{endpoint.host}:{endpoint.port}"
        for endpoint in settings.endpoints
    )
    path = (
        base_dir if base_dir.startswith("/") else f"/{base_dir}" if base_dir[:1] == "~" else f"/~/{base_dir}"
    )
    written = locations.quoted(path, safe="/~")
    if base_dir == "/~" or base_dir.startswith("/~/"):
        written = f"/%7E{written[2:]}"  # a directory of that name in the root
    return f"ssh://{locations.quoted(settings.user, safe='')}@{hosts}{written}"
