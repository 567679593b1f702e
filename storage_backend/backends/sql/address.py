"""Address and DatabaseSettings: the URL of a database, parsed, and the other parameters of DatabaseStorage."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from storage_backend.errors import ConfigurationError
from storage_backend.paths import expanded
from storage_backend.secrets import Secret

# libpq's connection parameters that are not secret ("Parameter Key Words", PostgreSQL documentation).
POSTGRESQL_PARAMETERS = frozenset(
    {
        "application_name",
        "channel_binding",
        "connect_timeout",
        "gssencmode",
        "host",
        "hostaddr",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "krbsrvname",
        "load_balance_hosts",
        "options",
        "passfile",
        "port",
        "require_auth",
        "sslcert",
        "sslcrl",
        "sslkey",
        "sslmode",
        "sslnegotiation",
        "sslrootcert",
        "target_session_attrs",
        "tcp_user_timeout",
    }
)
_FILES = frozenset({"passfile", "sslcert", "sslcrl", "sslkey", "sslrootcert"})


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a database.

    Attributes:
        dialect: "sqlite" or "postgresql".
        location: the URL without a password.
        path: the absolute path of the file (SQLite).
        parameters: for libpq, without the password (PostgreSQL).
        password: with None, libpq finds it.
    """

    dialect: str
    location: str
    path: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    password: Secret | None = None


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """Parameters of `DatabaseStorage`.

    Raises:
        ConfigurationError: a number is not positive.
    """

    create_if_missing: bool
    durable: bool
    timeout_seconds: float
    connections: int
    stale_seconds: float

    def __post_init__(self) -> None:
        for name in ("timeout_seconds", "connections", "stale_seconds"):
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"{name}: {getattr(self, name)!r} is not positive", parameter=name)


def parse(url: str, password: str | None = None) -> Address:
    """Parse *url*. No I/O.

    Args:
        url: `sqlite:///relative.db`, `sqlite:////absolute.db`, `sqlite:///~/beneath/home.db` or `postgresql://user@host:port/name?parameter=value`,
            percent-encoded.
        password: of PostgreSQL: itself, "env:NAME" or "file:PATH".

    Raises:
        ConfigurationError: *url* has none of these forms, or a wrong parameter.
    """
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, not {type(url).__name__}")
    scheme, separator, _ = url.partition("://")
    if separator and scheme == "sqlite":
        return _sqlite(url, password)
    if separator and scheme == "postgresql":
        return _postgresql(url, password)
    # Not the whole URL: it may contain a password.
    raise _wrong(f"unknown scheme {scheme[:20]!r}; known: sqlite:///FILE, postgresql://USER@HOST/NAME")


def _sqlite(url: str, password: str | None) -> Address:
    rest = url.removeprefix("sqlite://")
    if password is not None:
        raise ConfigurationError("password: SQLite takes none", parameter="password")
    if "#" in rest:
        raise _wrong('write %23 for a "#" in the path')
    rest, _, query = rest.partition("?")
    if query:
        raise _wrong(f'unknown parameter {query.partition("=")[0]!r}: sqlite:/// takes none ("?" is %3F)')
    if rest in {"", "/", "/:memory:"}:
        raise _wrong("a database in memory would end with its connection: use MemoryStorage")
    if not rest.startswith("/"):
        raise _wrong("sqlite:///relative.db has three slashes, sqlite:////absolute.db has four")
    path = os.path.abspath(expanded(unquote(rest[1:], errors="surrogateescape")))  # noqa: PTH100 - resolve() would do I/O
    if "\0" in path:
        raise _wrong("the path contains a NUL")
    return Address("sqlite", f"sqlite:///{quote(os.fsencode(path))}", path)


def _postgresql(url: str, password: str | None) -> Address:
    try:
        parts = urlsplit(url)
        # "+" is "+", as for libpq; parse_qsl would read a space, as in an HTML form.
        asked = parts.query.replace("+", "%2B")
        query = parse_qsl(asked, keep_blank_values=True, strict_parsing=bool(asked))
    except ValueError:
        raise _wrong("write postgresql://USER@HOST:PORT/NAME?PARAMETER=VALUE") from None
    if "#" in url:
        raise _wrong('write %23 for a "#"')
    account, _, hosts = parts.netloc.rpartition("@")
    user, has_password, inline = account.partition(":")
    if has_password and password is not None:
        raise ConfigurationError("password: the URL already has one", parameter="password")
    parameters = dict(_hosts(hosts))
    name = unquote(parts.path.removeprefix("/"))
    if not name:
        raise _wrong("no database name: write postgresql://USER@HOST:PORT/NAME")
    for key, value in query:
        if key in {"password", "sslpassword"}:
            raise _wrong(f"{key} is not allowed in a query: use PGPASSWORD, .pgpass or password=")
        if key not in POSTGRESQL_PARAMETERS:
            raise _wrong(f"unknown parameter {key!r}; known: {', '.join(sorted(POSTGRESQL_PARAMETERS))}")
        parameters[key] = expanded(value) if key in _FILES else value
    parameters["dbname"] = name
    if user:
        parameters["user"] = unquote(user)
    netloc = f"{quote(unquote(user))}@{hosts}" if user else hosts
    location = f"postgresql://{netloc}/{quote(name, safe='')}"
    if query:
        location += f"?{urlencode(query, safe='/', quote_via=quote)}"
    # literal: in a URL, "env:" is part of the password.
    inlined = Secret("password", unquote(inline), literal=True) if has_password else None
    return Address("postgresql", location, "", parameters, inlined or Secret.given("password", password))


def _hosts(text: str) -> Mapping[str, str]:
    """Libpq's `host` and `port` for `host:port,host:port`. A host may be [IPv6]."""
    if not text:
        return {}
    hosts, ports = [], []
    for endpoint in text.split(","):
        host, bracket, port = endpoint.rpartition("]")
        if bracket:
            host = host.removeprefix("[")
            port = port.removeprefix(":")
        else:
            host, _, port = endpoint.partition(":")
        if port and not port.isdecimal():
            # The message does not show it: it may be part of a password that contains a "/".
            raise _wrong('a port must be a number; percent-encode "#", "/", "?" and "@" in a password')
        hosts.append(unquote(host))
        ports.append(port)
    return {"host": ",".join(hosts)} | ({"port": ",".join(ports)} if any(ports) else {})


def _wrong(reason: str) -> ConfigurationError:
    return ConfigurationError(f"url: {reason}", parameter="url")
