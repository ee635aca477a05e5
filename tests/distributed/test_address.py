"""Addresses and secrets of a pacer's server, as arguments."""

import os
from typing import Any

import pytest

from omnigate import InvalidArgumentError
from omnigate.distributed import PacerServer, SocketPacer

SECRET = "a secret of enough bytes"


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("tcp://localhost:7070", "tcp://localhost:7070"),
        ("tcp://[::1]:7070", "tcp://[::1]:7070"),
        ("tcp://10.0.0.1:65535/", "tcp://10.0.0.1:65535"),
        ("unix:/run/p.sock", "unix:/run/p.sock"),
        ("unix:///run/p.sock", "unix:/run/p.sock"),
        ("unix:p.sock", f"unix:{os.getcwd()}/p.sock"),
    ],
)
def test_an_address_is_understood(given: str, address: str) -> None:
    assert SocketPacer(given, secret=SECRET).address == address
    assert PacerServer(given, secret=SECRET).address == address


@pytest.mark.parametrize(
    "address",
    ["", "p.sock", "unix:", "unix:a\0b", "http://h:1", "tcp://", "tcp://h", "tcp://:1", "tcp://h:", "tcp://h:x",
     "tcp://h:1:2", "tcp://::1:80", "tcp://u@h:1", "tcp://h:123456", 5, None, b"unix:/p"],
)  # fmt: skip
@pytest.mark.parametrize("kind", [SocketPacer, PacerServer])
def test_what_is_no_address_is_refused(kind: Any, address: Any) -> None:
    with pytest.raises(
        InvalidArgumentError, match='address must be "unix:/path/of/a.sock" or "tcp://host:port"'
    ):
        kind(address, secret=SECRET)


def test_only_a_server_may_have_any_free_port() -> None:
    PacerServer("tcp://127.0.0.1:0", secret=SECRET)
    with pytest.raises(InvalidArgumentError, match="must have a port between 1 and 65535, got 'tcp://h:0'"):
        SocketPacer("tcp://h:0", secret=SECRET)
    with pytest.raises(InvalidArgumentError, match="must have a port between 0 and 65535"):
        PacerServer("tcp://h:65536", secret=SECRET)


def test_a_path_that_is_too_long_for_a_socket_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"must have a path of at most 10\d bytes"):
        SocketPacer("unix:/" + "x" * 200, secret=SECRET)


def test_the_secret_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InvalidArgumentError, match="secret must be given, or the variable OMNIGATE_PACER_SECRET"
    ):
        SocketPacer("unix:/p")
    monkeypatch.setenv("OMNIGATE_PACER_SECRET", SECRET)
    assert SocketPacer("unix:/p")._secret == SECRET.encode()
    monkeypatch.setenv("OMNIGATE_PACER_SECRET", "short")
    with pytest.raises(
        InvalidArgumentError, match=r"\$OMNIGATE_PACER_SECRET must have at least 16 bytes"
    ) as raised:
        SocketPacer("unix:/p")
    assert "short" not in str(raised.value)


@pytest.mark.parametrize(
    ("secret", "message"),
    [
        ("too short", "secret must have at least 16 bytes, so that it cannot be guessed, got 9"),
        (5, "secret must be text or bytes, got an object of type int"),
        ("\ud800" * 20, r"secret must not contain lone surrogates, got \*\*\*"),
    ],
)
def test_a_bad_secret_is_refused_and_not_shown(secret: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as raised:
        PacerServer("unix:/p", secret=secret)
    assert str(secret) not in str(raised.value) or secret == 5


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (SocketPacer, "timeout_seconds", 0),
        (SocketPacer, "timeout_seconds", 61),
        (PacerServer, "max_connections", 0),
        (PacerServer, "max_connections", 1.5),
    ],
)
def test_other_arguments_are_checked(kind: Any, name: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{name} must be (an integer )?between"):
        kind("unix:/p", secret=SECRET, **{name: value})
