"""Secrets by reference, and what is said of them aloud."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

from storage_backend import ConfigurationError
from storage_backend.secrets import Secret, refuse_pickle

pytestmark = pytest.mark.quick


def given(value: str) -> Secret:
    secret = Secret.given("secret_key", value)
    assert secret is not None
    return secret


def test_nothing_given_is_no_secret() -> None:
    assert Secret.given("secret_key", None) is None


@pytest.mark.parametrize("value", ["hunter2", "", "environment:X", "ENV:X", " env:X", "filet"])
def test_what_is_no_reference_is_the_secret_itself(value: str) -> None:
    assert given(value).literal
    assert given(value).value() == value


def test_reference_is_looked_up_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a:b"
    for reference in ("env:SB_SECRET", f"file:{path}"):
        secret = given(reference)
        assert not secret.literal
        for content in ("first:é", "second", ""):
            monkeypatch.setenv("SB_SECRET", content)
            path.write_text(f"{content}\r\n", encoding="utf-8")
            assert secret.value() == content


def test_only_the_newline_at_the_end_of_a_file_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b" two\nlines \n\n")
    assert given(f"file:{tmp_path}/key").value() == " two\nlines "


@pytest.mark.parametrize(
    "reference", ["env:SB_MISSING", "env:", "file:/missing/secret", "file:", "file:a\0b"]
)
def test_missing_reference_is_named_with_its_parameter(reference: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^secret_key: ") as caught:
        given(reference).value()
    assert caught.value.parameter == "secret_key"
    assert repr(reference.partition(":")[2]) in str(caught.value)


def test_file_that_is_no_text_is_named_and_not_quoted(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"hunter2\xfe")
    with pytest.raises(ConfigurationError, match=r"^secret_key: .*key.* is not UTF-8$"):
        given(f"file:{tmp_path}/key").value()


def test_it_shows_how_it_was_given_and_never_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SB_SECRET", "hunter2")
    literal = given("hunter2")
    for secret in (literal, copy.copy(literal), copy.deepcopy(literal), pickle.loads(pickle.dumps(literal))):
        assert secret == literal
        assert {repr(secret), str(secret), f"{secret}"} == {"<secret_key: given literally>"}
    reference = given("env:SB_SECRET")
    assert {repr(reference), str(reference)} == {"<secret_key: env:SB_SECRET>"}
    assert b"hunter2" not in pickle.dumps(reference)


def test_owner_of_a_literal_secret_refuses_to_be_pickled() -> None:
    reference, literal = given("env:X"), Secret.given("session_token", "hunter2")
    refuse_pickle("s3://bucket", None, reference, advice="a profile")
    with pytest.raises(ConfigurationError) as caught:
        refuse_pickle("s3://bucket", None, reference, literal, advice="a profile")
    assert str(caught.value) == (
        "s3://bucket: it was given a literal session_token, which must not be pickled; use a profile"
    )
    assert (caught.value.parameter, caught.value.backend) == ("session_token", "s3://bucket")
