"""Secret: a password or key, given literally or by reference."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from typing_extensions import override

from storage_backend.errors import ConfigurationError
from storage_backend.paths import expanded

_REFERENCES = ("env:", "file:")


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A constructor argument whose value never appears in a repr, message or pickle.

    Attributes:
        parameter: its name.
        text: "env:NAME", "file:PATH" or, if *literal*, the secret itself.
        literal: whether *text* is the secret. Then its owner refuses to be pickled (`refuse_pickle`).
    """

    parameter: str
    text: str
    literal: bool

    @classmethod
    def given(cls, parameter: str, value: str | None) -> Self | None:
        """The secret for *value*: a literal, "env:NAME" or "file:PATH"; None for None."""
        return None if value is None else cls(parameter, value, not value.startswith(_REFERENCES))

    def value(self) -> str:
        """The secret, looked up now. A newline at the end of a file is ignored.

        Raises:
            ConfigurationError: its environment variable or file does not exist.
        """
        if self.literal:
            return self.text
        kind, _, place = self.text.partition(":")
        if kind == "env":
            found = os.environ.get(place)
            if found is None:
                raise self._wrong(f"there is no environment variable {place!r}")
            return found
        try:
            return Path(expanded(place)).read_text(encoding="utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            # The error text quotes a byte of the secret.
            raise self._wrong(f"cannot read {place!r}: it is not UTF-8") from None
        except (OSError, ValueError) as error:
            raise self._wrong(f"cannot read {place!r}: {error}") from None

    @override
    def __repr__(self) -> str:
        return f"<{self.parameter}: {'given literally' if self.literal else self.text}>"

    def _wrong(self, reason: str) -> ConfigurationError:
        return ConfigurationError(f"{self.parameter}: {reason}", parameter=self.parameter)


def refuse_pickle(where: str, *secrets: Secret | None, advice: str) -> None:
    """Refuse to pickle an object that was given a literal secret.

    Args:
        where: the owner's location.
        secrets: of the owner.
        advice: what to use instead, as in "use *PGPASSWORD*".

    Raises:
        ConfigurationError: one of them was given literally.
    """
    for secret in secrets:
        if secret is not None and secret.literal:
            raise ConfigurationError(
                f"{where}: it was given a literal {secret.parameter}, which must not be pickled; use {advice}",
                parameter=secret.parameter,
                backend=where,
            )
