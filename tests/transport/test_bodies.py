"""The undoing of compressed bodies, sans-I/O: what tests/calls/test_calls.py shows with calls, at every split."""

import gzip
import tracemalloc
import zlib

import pytest

from omnigate._transport.bodies import Inflater

TEXT = b"hello hello hello"
GZIP = gzip.compress(TEXT, mtime=0)


def inflate(encoding: str, pieces: list[bytes]) -> bytes:
    inflater = Inflater(encoding)
    decoded = b"".join(part for piece in pieces for part in inflater.feed(piece))
    inflater.finish()
    return decoded


@pytest.mark.parametrize(
    ("encoding", "data", "decoded"),
    [
        ("gzip", GZIP, TEXT),
        ("gzip", GZIP + gzip.compress(b"again", mtime=0), TEXT + b"again"),
        ("gzip", GZIP + b"\0\0\0", TEXT),
        ("gzip", GZIP + b"\x1f", TEXT),
        ("gzip", GZIP + b"\0" + GZIP, TEXT),
        ("gzip", b"", b""),
        ("deflate", zlib.compress(TEXT), TEXT),
        ("deflate", zlib.compress(TEXT)[2:-4], TEXT),
        ("deflate", zlib.compress(TEXT) + GZIP, TEXT),
    ],
)
def test_where_a_compressed_body_is_cut_makes_no_difference(
    encoding: str, data: bytes, decoded: bytes
) -> None:
    assert inflate(encoding, [data]) == decoded
    for cut in range(len(data)):
        assert inflate(encoding, [data[:cut], data[cut:]]) == decoded
    assert inflate(encoding, [data[i : i + 1] for i in range(len(data))]) == decoded


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_what_follows_a_compressed_body_is_not_kept(encoding: str) -> None:
    inflater = Inflater(encoding)
    assert b"".join(inflater.feed(GZIP if encoding == "gzip" else zlib.compress(TEXT))) == TEXT
    tracemalloc.start()
    for _ in range(100):
        assert list(inflater.feed(b"\0" * 65_536)) == []
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 65_536
    inflater.finish()
