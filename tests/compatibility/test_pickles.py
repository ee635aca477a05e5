"""Pickles made before the modules moved load into the public classes with all their data."""

import pickle
from pathlib import Path
from typing import Any

import pytest

import omnigate

STORED = sorted((Path(__file__).parent / "pickles").glob("*.pickle"))


def stored(name: str) -> Any:
    return pickle.loads((Path(__file__).parent / "pickles" / f"{name}.pickle").read_bytes())


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_an_old_pickle_loads_as_the_public_class_and_can_be_pickled_again(
    path: Path,
) -> None:
    value = pickle.loads(path.read_bytes())
    name = "Outcome" if path.stem.startswith("OutcomeOf") else path.stem
    assert type(value) is getattr(omnigate, name)
    copy = pickle.dumps(value)
    assert b"omnigate." not in copy  # a new pickle names only the package
    assert repr(pickle.loads(copy)) == repr(value)


def test_an_old_pickled_outcome_keeps_its_response_meta_and_request() -> None:
    outcome = stored("OutcomeOfSuccess")
    assert outcome.unwrap().content == "hello"
    assert outcome.unwrap().meta.request_id == "req-1"
    assert outcome.unwrap().meta.rate_limit == omnigate.RateLimit(60, 59, 30)
    assert outcome.request.messages[0].content == "hi"


def test_an_old_pickled_error_keeps_its_attributes() -> None:
    error = stored("RateLimitError")
    assert (error.status_code, error.retry_after, error.request_id) == (429, 7.0, "req-1")
    assert error.rate_limit == omnigate.RateLimit(60, 59, 30)
    assert isinstance(stored("OutcomeOfProviderRateLimit").error, omnigate.ProviderRateLimitError)
    assert [type(e) for e in stored("RaceError").exceptions] == [omnigate.AuthError] * 2
