"""`response_type` of the sync client: the same answers, errors and journals as the async one's."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from omnigate import Client, InvalidArgumentTypeError, ResponseFormatError

from ..support.scripted import ScriptedTransport, Step, chat_answer


class City(msgspec.Struct, frozen=True):
    name: str


def saying(content: str) -> Step:
    return lambda _: chat_answer(content=content)


def client_of(backend: Any, *steps: Step) -> Client:
    return Client("k", base_url="http://gateway.test", transport=ScriptedTransport(*steps), backend=backend)


def test_a_sync_chat_is_parsed_and_asked_again(backend: Any) -> None:
    with client_of(backend, saying("no"), saying('{"name": "Paris"}')) as client:
        response = client.chat(model="m", messages="x", response_type=City)
    assert response.parsed == City("Paris")
    assert [rejected.content for rejected in response.rejected] == ["no"]


def test_a_sync_chat_that_never_fits_is_a_typed_error(backend: Any) -> None:
    with client_of(backend, saying("no")) as client:
        with pytest.raises(ResponseFormatError) as caught:
            client.chat(model="m", messages="x", response_type=City, response_retries=1)
    assert (caught.value.text, len(caught.value.billed)) == ("no", 2)


def test_a_sync_batch_and_chat_many_are_parsed_and_resumed(backend: Any, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    with client_of(backend, saying("no"), saying('{"name": "Paris"}')) as client:
        with client.batch(["x"] * 3, model="m", response_type=City, journal=journal) as batch:
            outcomes = list(batch)
        responses = client.chat_many(["x"] * 3, model="m", response_type=City, journal=journal)
    assert [outcome.unwrap().parsed for outcome in outcomes] == [City("Paris")] * 3
    assert [response.parsed for response in responses] == [City("Paris")] * 3


def test_a_sync_batch_refuses_a_type_without_a_schema_before_anything_is_sent(backend: Any) -> None:
    with client_of(backend, saying("no")) as client:
        for call in (client.batch, client.chat_many):
            with pytest.raises(InvalidArgumentTypeError, match="response_type must be a type"):
                call(["x"], model="m", response_type=object)
