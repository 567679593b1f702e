"""The schemes of locations: which backend a URL means, and the arguments of its constructor."""

from __future__ import annotations

import difflib
import getpass
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from storage_backend import url_escaping
from storage_backend.errors import ConfigurationError
from storage_backend.location_parser import CACHE_NUMBERS, CACHE_TEXTS, CACHED, EXAMPLES, Url, redacted
from storage_backend.paths import expanded

Arguments: TypeAlias = dict[str, Any]


def _check_parameters(url: Url, known: frozenset[str] = frozenset()) -> None:
    """Refuse parameters that neither the backend nor, after `cached+`, the cache has."""
    cache = frozenset({*CACHE_TEXTS, *CACHE_NUMBERS})
    for name in url.parameters:
        if name in known:
            continue
        near = difflib.get_close_matches(name, sorted(known if url.cache is None else known | cache), 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        takes = f"{url.scheme} takes " + (", ".join(sorted(known)) or 'none (in a path, "?" is %3F)')
        if url.scheme in {"s3", "ssh"}:
            takes += ' (in a name, "?" is %3F)'
        if url.cache is not None:
            takes += f"; the cache takes {', '.join(sorted(cache))}"
        elif name in cache:
            takes += f'; {name} is a parameter of a cache: write "{CACHED}" before the URL'
        raise ConfigurationError(f"unknown parameter {name!r}{hint}; {takes}", parameter=name)


def _file(url: Url, create: bool) -> Arguments:
    _check_parameters(url)
    if url.authority not in {"", "localhost"} or not url.path:
        raise ConfigurationError(
            f"{url.text!r} has no absolute path; write {EXAMPLES['file']}", parameter="location"
        )
    return local_arguments(url_escaping.unquoted(url.path), create)


def local_arguments(path: str, create: bool) -> Arguments:
    """The arguments of LocalStorage for the directory *path*."""
    return {"base_dir": path, "create_if_missing": "late" if create else False}


def _memory(url: Url, create: bool) -> Arguments:  # noqa: ARG001 - the signature of all SCHEMES
    _check_parameters(url)
    if url.authority or url.path:
        raise ConfigurationError(f'{url.text!r}: only "#prefix" may follow "memory:"', parameter="location")
    return {}


def _sqlite(url: Url, create: bool) -> Arguments:
    _check_parameters(url)
    return {"url": url.text, "create_if_missing": create}


def _postgresql(url: Url, create: bool) -> Arguments:
    # An unescaped "#", "/" or "?" in a password ends the authority early: what looks like a port is then part of the password.
    hosts = re.sub(r"\[[^]]*]", "", url.authority.rpartition("@")[2])
    if re.search(r":(?!\d*(,|$))", hosts):
        raise ConfigurationError(
            'a port of the postgresql URL is not a number; in a password "#", "/", "?" and "@" are percent-encoded',
            parameter="location",
        )
    address = import_module("storage_backend.backends.sql.address")
    # For these two, the backend's own message says where a password belongs.
    others = {name: text for name, text in url.parameters.items() if name not in {"password", "sslpassword"}}
    _check_parameters(replace(url, parameters=others), address.POSTGRESQL_PARAMETERS)
    return {"url": url.text, "create_if_missing": create}


# The parameters of S3Storage that a URL may have. No secrets: other users can see a URL in the list of processes.
_S3_FLAGS = frozenset({"accelerate", "anonymous", "create_bucket"})
_S3_NUMBERS = frozenset({"max_concurrency", "multipart_chunk_size", "multipart_threshold"})
_S3_TEXTS = frozenset(
    {
        "acl",
        "addressing_style",
        "ca_bundle",
        "checksum",
        "content_type",
        "endpoint_url",
        "profile",
        "region",
        "request_payer",
        "server_side_encryption",
        "sse_kms_key_id",
        "storage_class",
    }
)


def _s3(url: Url, create: bool) -> Arguments:
    if "@" in url.authority:
        raise ConfigurationError(
            "an s3 URL takes no user and password: use the environment or a profile", parameter="location"
        )
    bucket = url_escaping.unquoted(url.authority)
    if not bucket:
        raise ConfigurationError(f"the s3 URL has no bucket; write {EXAMPLES['s3']}", parameter="location")
    if "//" in url.path:
        raise ConfigurationError(
            f'{redacted(url.text)!r} has an empty segment between two "/", which no identifier has',
            parameter="location",
        )
    _check_parameters(url, _S3_FLAGS | _S3_NUMBERS | _S3_TEXTS)
    found: Arguments = {}
    for name, text in url.parameters.items():
        if name in _S3_FLAGS:
            found[name] = _flag(name, text)
        elif name in _S3_NUMBERS:
            found[name] = _number(name, text)
        else:
            found[name] = text
    return {"create_bucket": create} | found | {"bucket": bucket, "prefix": url_escaping.unquoted(url.path)}


_SSH_FLAGS = frozenset({"agent", "non_atomic_overwrite"})
_SSH_SECONDS = frozenset({"connection_timeout", "io_timeout", "keepalive"})
_SSH_NUMBERS = frozenset({"max_connections"})
_SSH_TEXTS = frozenset({"host_key_policy", "key_filename", "known_hosts", "shell", "ssh_config_file"})
_SSH_REFERENCES = frozenset({"passphrase", "password"})
_USER_CONFIG = "~/.ssh/config"


def _ssh(url: Url, create: bool) -> Arguments:
    user, at, hosts = url.authority.rpartition("@")
    if ":" in user:
        raise ConfigurationError(
            "an ssh URL takes no password: use a key, the agent, or password=env:NAME", parameter="location"
        )
    if not hosts:
        raise ConfigurationError(f"the ssh URL has no host; write {EXAMPLES['ssh']}", parameter="location")
    _check_parameters(url, _SSH_FLAGS | _SSH_NUMBERS | _SSH_SECONDS | _SSH_TEXTS | _SSH_REFERENCES)
    found: Arguments = {"endpoints": [_endpoint(text) for text in hosts.split(",")]}
    if at:
        found["user"] = url_escaping.unquoted(user)
    for name, text in url.parameters.items():
        if name in _SSH_FLAGS:
            found[name] = _flag(name, text)
        elif name in _SSH_NUMBERS:
            found[name] = _number(name, text)
        elif name in _SSH_SECONDS:
            found[name] = _seconds(name, text)
        elif name in _SSH_REFERENCES and not text.startswith(("env:", "file:")):
            raise ConfigurationError(
                f"{name}: other users can see a location in the list of processes; write {name}=env:NAME or {name}=file:PATH",
                parameter=name,
            )
        else:
            found[name] = text
    if "ssh_config_file" not in found and Path(expanded(_USER_CONFIG)).is_file():
        found["ssh_config_file"] = _USER_CONFIG
    path = url_escaping.unquoted(url.path)
    # Before unquoting: "/%7E" is a directory called "~" in the root.
    at_home = url.path in {"", "/~"} or url.path.startswith("/~/")
    base = path[1:] or "~" if at_home else path
    return {"ssh_config": _with_user(found), "remote_base_dir": base, "create_if_missing": create}


def _endpoint(text: str) -> list[str | int]:
    """A host, and its port if it has one; an IPv6 address stands in brackets (RFC 3986)."""
    parts = re.fullmatch(r"(?:\[([^]]*)]|([^:]*))(?::(\d*))?", text)
    if parts is None:
        raise ConfigurationError(
            f"{text!r} is not a host and port; write {EXAMPLES['ssh']}", parameter="location"
        )
    host = url_escaping.unquoted(parts[1] or parts[2] or "")
    return [host, int(parts[3])] if parts[3] else [host]


def _with_user(config: Arguments) -> Arguments:
    """*config* with a user: the given one, that of the OpenSSH configuration, or the current user."""
    settings = import_module("storage_backend.backends.remote.settings")
    try:
        settings.read_settings(config)
    except ConfigurationError as error:
        if error.parameter != "user" or "user" in config:
            raise
        return {**config, "user": getpass.getuser()}
    return config


def _seconds(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(f"{name}: {text!r} is not a number of seconds", parameter=name) from None


def _flag(name: str, text: str) -> bool:
    if text not in {"true", "false"}:
        raise ConfigurationError(f'{name}: {text!r} is neither "true" nor "false"', parameter=name)
    return text == "true"


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ConfigurationError(f"{name}: {text!r} is not a number", parameter=name)
    return int(text)


@dataclass(frozen=True)
class Scheme:
    """How locations of one scheme are opened.

    Attributes:
        backend: "module:Class".
        arguments: (url, create) -> keyword arguments of the class.
    """

    backend: str
    arguments: Callable[[Url, bool], Arguments]


SCHEMES: Mapping[str, Scheme] = {
    "file": Scheme("storage_backend.backends.local:LocalStorage", _file),
    "memory": Scheme("storage_backend.backends.memory:MemoryStorage", _memory),
    "sqlite": Scheme("storage_backend.backends.sql:DatabaseStorage", _sqlite),
    "postgresql": Scheme("storage_backend.backends.sql:DatabaseStorage", _postgresql),
    "s3": Scheme("storage_backend.backends.s3:S3Storage", _s3),
    "ssh": Scheme("storage_backend.backends.remote:RemoteStorage", _ssh),
}
