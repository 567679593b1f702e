"""Keyring: the master keys, by their ids."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Mapping
from typing import Any

from typing_extensions import Buffer, override

from storage_backend.errors import AuthenticationError, ConfigurationError
from storage_backend.secrets import Secret, refuse_pickle

KEY_SIZE = 32  # bytes, for AES-256
ID_SIZE = 8  # bytes
_ID_LABEL = b"storage-backend encrypted key id"


class Keyring:
    """The current key and older ones. A key given by reference is resolved when it is first needed.

    Args:
        current: the key to write with.
        others: id -> a key for reading only.

    Raises:
        ConfigurationError: a key is invalid, or its id is not the one given.
    """

    def __init__(self, current: Buffer | str, others: Mapping[str, Buffer | str] | None) -> None:
        self._current = EncryptionKey("key", current)
        self._others: dict[str, EncryptionKey] = {}
        for name, key in (others or {}).items():
            if not isinstance(name, str) or not re.fullmatch(rf"[0-9a-f]{{{2 * ID_SIZE}}}", name):
                # Not shown: if key and id are swapped, it is the key.
                raise ConfigurationError(
                    f"keys must be {{id: key}}, not {{key: id}}: an id has {2 * ID_SIZE} lower-case hex digits",
                    parameter="keys",
                )
            self._others[name] = EncryptionKey("keys", key, name)
        for known in (self._current, *self._others.values()):
            known.check()

    def current(self) -> bytes:
        """The key to write with."""
        return self._current.material()

    def find(self, key_id: bytes, identifier: str, where: str) -> bytes:
        """The key with that id.

        Raises:
            AuthenticationError: there is none for the object *identifier*.
        """
        if key_id == id_of(self._current.material()):
            return self._current.material()
        if key_id.hex() in self._others:
            return self._others[key_id.hex()].material()
        known = ", ".join([id_of(self._current.material()).hex(), *self._others])
        raise AuthenticationError(
            f"{identifier!r} in {where} is encrypted with the key {key_id.hex()}, which was not given; known: {known}",
            identifier=identifier,
            backend=where,
        )

    def refuse_pickle(self, where: str) -> None:
        """Raise if a pickle would contain a key.

        Raises:
            ConfigurationError: one of them was given literally.
        """
        keys = (self._current, *self._others.values())
        refuse_pickle(where, *(key.secret for key in keys), advice='"env:NAME" or "file:PATH"')


def id_of(key: bytes) -> bytes:
    """The id of a key: the first bytes of HMAC-SHA256 (RFC 2104) of a label. It reveals nothing about the key."""
    return hmac.digest(key, _ID_LABEL, "sha256")[:ID_SIZE]


class EncryptionKey:
    """One key, as it was given."""

    def __init__(self, parameter: str, given: Buffer | str, name: str | None = None) -> None:
        if isinstance(given, str):
            secret = Secret.given(parameter, given)
            assert secret is not None
        else:
            try:
                secret = Secret(parameter, bytes(memoryview(given)).hex(), literal=True)
            except TypeError:
                # "from None": the text of the original error might quote the key.
                raise TypeError(f"{parameter} must be bytes or a str, not {type(given).__name__}") from None
        self.secret = secret
        self._name = name
        self._found: bytes | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_found": None}

    @override
    def __repr__(self) -> str:
        return repr(self.secret)

    def check(self) -> None:
        """Raise if a key that was given literally is invalid; references are resolved later."""
        if self.secret.literal:
            self.material()

    def material(self) -> bytes:
        """Its 32 bytes.

        Raises:
            ConfigurationError: the value is not a key, or a key with another id.
        """
        if self._found is None:
            found = _parsed(self.secret.value().strip())
            if found is None:
                raise ConfigurationError(
                    f"{self.secret!r} is not a key: it must be {KEY_SIZE} bytes, or their hex or base64",
                    parameter=self.secret.parameter,
                )
            if self._name is not None and id_of(found).hex() != self._name:
                raise ConfigurationError(
                    f"{self.secret.parameter}: the key given as {self._name} has the id {id_of(found).hex()}",
                    parameter=self.secret.parameter,
                )
            self._found = found
        return self._found


def _parsed(text: str) -> bytes | None:
    """The key that *text* encodes, or None. A parser's error is not passed on: it might quote the key."""
    if re.fullmatch(rf"[0-9a-fA-F]{{{2 * KEY_SIZE}}}", text, re.ASCII):
        return bytes.fromhex(text)
    standard = text.translate({ord("-"): "+", ord("_"): "/"}).rstrip("=")
    try:
        found = base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
    return found if len(found) == KEY_SIZE else None
