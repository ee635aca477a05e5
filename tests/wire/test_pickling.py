"""Clients, transports, streams and batches cannot be pickled, and say what to do instead."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import omnigate
from omnigate import AdminClient, AnyIOTransport, AsyncAdminClient, AsyncClient, Client
from omnigate._transport.adapters import ThreadedTransport
from omnigate._transport.httpx_pool import HttpxTransport

KEY = "llmg_a-key-that-no-pickle-may-contain"
CALL: dict[str, Any] = {"model": "m", "messages": "x"}

CLIENTS: list[Callable[[], Any]] = [
    lambda: Client(KEY),
    lambda: AsyncClient(KEY),
    lambda: AdminClient(KEY),
    lambda: AsyncAdminClient(KEY),
    lambda: Client(KEY).chat,  # as `pool.map(client.chat, …)` does
    AnyIOTransport,
    lambda: HttpxTransport(httpx.AsyncHTTPTransport()),
    lambda: ThreadedTransport(httpx.HTTPTransport()),
]
READERS: list[Callable[[], Any]] = [
    lambda: Client(KEY).chat_stream(**CALL),
    lambda: AsyncClient(KEY).chat_stream(**CALL),
    lambda: Client(KEY).completions_stream(**CALL),
    lambda: AsyncClient(KEY).completions_stream(**CALL),
    lambda: Client(KEY).batch([CALL]),
    lambda: AsyncClient(KEY).batch([CALL]),
]


@pytest.mark.parametrize("make", CLIENTS)
@pytest.mark.parametrize("save", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_client_or_transport_refuses_to_be_pickled_and_says_to_create_one_in_each_process(
    make: Callable[[], Any], save: Callable[[Any], Any]
) -> None:
    made = make()
    if save is not pickle.dumps and callable(made):
        return  # copying a method does not copy its object
    with pytest.raises(
        TypeError, match=r"objects cannot be pickled or copied: .*Create one in each process"
    ) as caught:
        save(made)
    assert isinstance(caught.value, omnigate.GatewayError)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("make", READERS)
def test_a_stream_or_batch_refuses_to_be_pickled_and_says_to_pass_on_what_it_yields(
    make: Callable[[], Any],
) -> None:
    with pytest.raises(TypeError, match=r"objects cannot be pickled or copied: .*pass on what it yields"):
        pickle.dumps(make())


def test_no_public_class_pickles_a_key_that_it_was_given() -> None:
    for make in CLIENTS + READERS:
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(omnigate.InvalidArgumentTypeError):
                pickle.dumps(make(), protocol)
