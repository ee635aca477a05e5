"""How a worker and a pacer's server prove to each other that they know the secret. Sans-I/O.

1. The server sends a nonce. The worker answers with one of its own and a proof: the HMAC-SHA256 of both under
   the secret. The server answers with its own proof, which is another one since it names its side.
2. Both then derive two keys for this connection, one for each direction. Each message carries an HMAC under
   its direction's key, of its number and its content: it can be neither forged, nor changed, nor replayed.
3. The secret never travels. Messages are not encrypted: they tell how many calls a worker makes, and the
   names of models, but neither keys nor prompts.

A frame is its length, as four bytes in network order, and its content. Its length is bounded: to a few
hundred bytes before the proof, so that a stranger can occupy next to no memory.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from typing import Final

from omnigate._batch.pace.messages import MESSAGE_BYTES_MAX, PacerMessageError

__all__ = ["ClientSide", "FrameReader", "ServerSide", "frame"]

_MAGIC: Final = b"omnigate-pacer-1"

_NONCE_BYTES: Final = 32

_PROOF_BYTES: Final = 32

_TAG_BYTES: Final = 16

HANDSHAKE_BYTES_MAX: Final = 256
"""The longest frame before both sides have proved themselves."""

FRAME_BYTES_MAX: Final = MESSAGE_BYTES_MAX + _TAG_BYTES + 1

_LENGTH: Final = struct.Struct(">I")

_NUMBER: Final = struct.Struct(">Q")

_OK: Final = b"+"

_REFUSED: Final = b"-"

_WORDS_BYTES_MAX: Final = 200

ANOTHER_SECRET: Final = "it has another secret"  # noqa: S105 - not one
"""Words of a refusal that trying again does not help."""


class FrameReader:
    """Splits what arrives into frames, in bounded memory.

    Attributes:
        bytes_max: the longest frame that is accepted.

    """

    __slots__ = ("_buffer", "bytes_max")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.bytes_max: int = HANDSHAKE_BYTES_MAX

    @property
    def is_partial(self) -> bool:
        """Whether a frame has arrived in part."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> None:
        """Add what has arrived."""
        self._buffer += data

    def next(self) -> bytes | None:
        """Return the next frame; None if it is not complete.

        Raises:
            PacerMessageError: it is too long.

        """
        buffer = self._buffer
        if len(buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(buffer)
        if length > self.bytes_max:
            raise PacerMessageError(f"a frame must be at most {self.bytes_max:,} bytes long, got {length:,}")
        end = _LENGTH.size + length
        if len(buffer) < end:
            return None
        content = bytes(buffer[_LENGTH.size : end])
        del buffer[:end]
        return content


def frame(content: bytes) -> bytes:
    """Return a frame with its length."""
    return _LENGTH.pack(len(content)) + content


class _Keys:
    """The keys of a connection, and the numbers of the next messages."""

    __slots__ = ("_received", "_receiving", "_sending", "_sent")

    def __init__(self, sending: bytes, receiving: bytes) -> None:
        self._sending, self._receiving = sending, receiving
        self._sent = self._received = 0

    def seal(self, content: bytes) -> bytes:
        tag = _mac(self._sending, _NUMBER.pack(self._sent), content)[:_TAG_BYTES]
        self._sent += 1
        return tag + content

    def open(self, sealed: bytes) -> bytes:
        tag, content = sealed[:_TAG_BYTES], sealed[_TAG_BYTES:]
        expected = _mac(self._receiving, _NUMBER.pack(self._received), content)[:_TAG_BYTES]
        if not hmac.compare_digest(tag, expected):
            raise PacerMessageError("a message was changed on its way")
        self._received += 1
        return content


class ServerSide:
    """The server's side of a connection."""

    __slots__ = ("_keys", "_nonce", "_secret")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._nonce = secrets.token_bytes(_NONCE_BYTES)
        self._keys: _Keys | None = None

    def hello(self) -> bytes:
        """Return the first frame's content."""
        return _MAGIC + self._nonce

    def prove(self, content: bytes) -> bytes:
        """Check the worker's proof; return the answer, with the server's own.

        Raises:
            PacerMessageError: it is wrong; `refuse` says so.

        """
        nonces = self._nonce + content[:_NONCE_BYTES]
        expected = _mac(self._secret, b"worker", nonces)
        proof = content[_NONCE_BYTES:]
        if len(content) != _NONCE_BYTES + _PROOF_BYTES or not hmac.compare_digest(proof, expected):
            raise PacerMessageError("the worker does not know the secret")
        self._keys = _Keys(_mac(self._secret, b"grants", nonces), _mac(self._secret, b"reports", nonces))
        return _OK + _mac(self._secret, b"server", nonces)

    def report(self, sealed: bytes) -> bytes:
        """Return the report in a frame.

        Raises:
            PacerMessageError: it was changed on its way.

        """
        assert self._keys is not None
        return self._keys.open(sealed)

    def grant(self, grant: bytes) -> bytes:
        """Return a frame's content with a grant."""
        assert self._keys is not None
        return self._keys.seal(_OK + grant)

    def refuse(self, words: str) -> bytes:
        """Return a frame's content that says why the connection is closed."""
        content = _REFUSED + words.encode(errors="replace")[:_WORDS_BYTES_MAX]
        return content if self._keys is None else self._keys.seal(content)


class ClientSide:
    """A worker's side of a connection."""

    __slots__ = ("_keys", "_nonces", "_secret")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._nonces = b""
        self._keys: _Keys | None = None

    def prove(self, hello: bytes) -> bytes:
        """Answer the server's first frame with a proof.

        Raises:
            ConnectionError: the server has refused.
            PacerMessageError: it is no pacer's server.

        """
        _check_refusal(hello)
        if hello[: len(_MAGIC)] != _MAGIC or len(hello) != len(_MAGIC) + _NONCE_BYTES:
            raise PacerMessageError("it is no pacer of this version")
        nonce = secrets.token_bytes(_NONCE_BYTES)
        self._nonces = hello[len(_MAGIC) :] + nonce
        return nonce + _mac(self._secret, b"worker", self._nonces)

    def check(self, content: bytes) -> None:
        """Check the server's proof.

        Raises:
            ConnectionError: the server has refused.
            PermissionError: the proof is wrong.

        """
        _check_refusal(content)
        expected = _OK + _mac(self._secret, b"server", self._nonces)
        if not hmac.compare_digest(content, expected):
            raise PermissionError("it does not know the secret")
        self._keys = _Keys(
            _mac(self._secret, b"reports", self._nonces), _mac(self._secret, b"grants", self._nonces)
        )

    def report(self, report: bytes) -> bytes:
        """Return a frame's content with a report."""
        assert self._keys is not None
        return self._keys.seal(report)

    def grant(self, sealed: bytes) -> bytes:
        """Return the grant in a frame.

        Raises:
            ConnectionError: the server has refused the report.
            PacerMessageError: it was changed on its way.

        """
        assert self._keys is not None
        content = self._keys.open(sealed)
        _check_refusal(content)
        return content[len(_OK) :]


def _check_refusal(content: bytes) -> None:
    if content[: len(_REFUSED)] == _REFUSED:
        words = content[len(_REFUSED) :][:_WORDS_BYTES_MAX].decode(errors="replace")
        words = "".join(character if character.isprintable() else "?" for character in words)
        raise PermissionError(words) if words == ANOTHER_SECRET else ConnectionError(words)


def _mac(key: bytes, label: bytes, content: bytes) -> bytes:
    return hmac.digest(key, label + b"\0" + content, hashlib.sha256)
