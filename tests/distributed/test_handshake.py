"""The proofs and frames between a worker and a pacer's server, as bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnigate.distributed import PacerMessageError
from omnigate.distributed._handshake import (
    ANOTHER_SECRET,
    HANDSHAKE_BYTES_MAX,
    ClientSide,
    FrameReader,
    ServerSide,
    frame,
)

SECRET = b"a secret of enough bytes"


def joined() -> tuple[ClientSide, ServerSide]:
    client, server = ClientSide(SECRET), ServerSide(SECRET)
    client.check(server.prove(client.prove(server.hello())))
    return client, server


def test_both_sides_that_know_the_secret_exchange_messages() -> None:
    client, server = joined()
    for number in range(3):
        assert server.report(client.report(b"report %d" % number)) == b"report %d" % number
        assert client.grant(server.grant(b"grant %d" % number)) == b"grant %d" % number


def test_nothing_that_travels_contains_the_secret() -> None:
    client, server = ClientSide(SECRET), ServerSide(SECRET)
    hello = server.hello()
    proof = client.prove(hello)
    answer = server.prove(proof)
    client.check(answer)
    travelled = hello + proof + answer + client.report(b"report") + server.grant(b"grant")
    assert SECRET not in travelled
    assert SECRET.decode() not in repr((client, server))


def test_a_worker_with_another_secret_is_refused() -> None:
    client, server = ClientSide(b"some other secret, as long"), ServerSide(SECRET)
    with pytest.raises(PacerMessageError, match="does not know the secret"):
        server.prove(client.prove(server.hello()))
    with pytest.raises(PermissionError, match=ANOTHER_SECRET):
        client.check(server.refuse(ANOTHER_SECRET))


def test_a_server_that_does_not_know_the_secret_is_not_believed() -> None:
    client, server = ClientSide(SECRET), ServerSide(b"some other secret, as long")
    proof = client.prove(server.hello())
    for answer in (b"", b"+", b"+" + bytes(32), b"+" + proof[32:]):  # the last is the worker's own proof
        with pytest.raises(PermissionError, match="does not know the secret"):
            client.check(answer)


def test_a_proof_is_of_no_use_for_another_connection() -> None:
    client, server = ClientSide(SECRET), ServerSide(SECRET)
    proof = client.prove(server.hello())
    with pytest.raises(PacerMessageError):
        ServerSide(SECRET).prove(proof)


@pytest.mark.parametrize(
    "hello", [b"", b"HTTP/1.1 400 Bad Request", b"omnigate-pacer-2" + bytes(32), bytes(48)]
)
def test_something_else_than_a_pacer_is_recognized(hello: bytes) -> None:
    with pytest.raises(PacerMessageError, match="no pacer of this version"):
        ClientSide(SECRET).prove(hello)


def test_messages_that_were_changed_replayed_or_reflected_are_refused() -> None:
    client, server = joined()
    first = client.report(b"first")
    with pytest.raises(PacerMessageError, match="changed on its way"):
        server.report(first[:-1] + b"T")
    with pytest.raises(PacerMessageError, match="changed on its way"):
        client.grant(first)
    assert server.report(first) == b"first"
    with pytest.raises(PacerMessageError, match="changed on its way"):
        server.report(first)


def test_words_of_a_refusal_are_bounded_and_printable() -> None:
    with pytest.raises(ConnectionError) as raised:
        ClientSide(SECRET).prove(b"-\x1b[31m" + b"x" * 10_000)
    assert str(raised.value).startswith("?[31mxxx")
    assert len(str(raised.value)) == 200


@given(st.lists(st.binary(max_size=100), max_size=5), st.integers(1, 50))
def test_frames_arrive_however_they_are_split(contents: list[bytes], size: int) -> None:
    data = b"".join(map(frame, contents))
    reader, found = FrameReader(), []
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])
        while (content := reader.next()) is not None:
            found.append(content)
    assert found == contents
    assert not reader.is_partial


def test_a_frame_is_bounded_by_its_announced_length() -> None:
    reader = FrameReader()
    reader.feed((HANDSHAKE_BYTES_MAX + 1).to_bytes(4, "big"))
    with pytest.raises(PacerMessageError, match="at most 256 bytes long, got 257"):
        reader.next()


@given(st.binary(max_size=200))
def test_garbage_is_a_typed_error_on_both_sides(data: bytes) -> None:
    client, server = joined()
    for take in (ServerSide(SECRET).prove, ClientSide(SECRET).prove, server.report, client.grant):
        with pytest.raises((PacerMessageError, ConnectionError, PermissionError)):
            take(data)
