"""Replay the corpus and seeded mutations of it through the fuzz targets, without atheris."""

import random
from pathlib import Path

import pytest

from .targets import CORPUS, TARGETS

MUTATIONS = 4_000
INPUTS = [path for name in sorted(TARGETS) for path in sorted((CORPUS / name).iterdir())]
TOKENS = [
    b"\n[error] ", b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"data: ", b"data: [DONE]", b":", b" ", b"\0", b"\xff", b"\xef\xbb\xbf",
    "é😀".encode(), b'"error"', b'{"choices":[]}', b"HTTP/1.1 200 OK", b"HTTP/1.1 100 \r\n\r\n", b"Content-Length: 5", b"chunked",
    b"Transfer-Encoding: chunked", b"Connection: close", b"0\r\n\r\n", b";x=y", b"\x1f\x8b",
]  # fmt: skip


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_fuzz_target_accepts_each_input_of_the_corpus(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_fuzz_target_accepts_mutations_of_the_corpus(name: str) -> None:
    dice = random.Random(20261124)
    seeds = [path.read_bytes() for path in INPUTS if path.parent.name == name]
    for _ in range(MUTATIONS):
        data = mutated(dice, seeds)
        try:
            TARGETS[name](data)
        except BaseException as error:
            error.add_note(f"the input was {data!r}")
            raise


def mutated(dice: random.Random, seeds: list[bytes]) -> bytes:
    data = bytearray(dice.choice(seeds)[:300])
    for _ in range(dice.randint(1, 4)):
        place = dice.randint(0, len(data))
        match dice.randrange(5):
            case 0:
                data[place:place] = dice.choice(TOKENS)
            case 1:
                data[place : place + dice.randint(1, 8)] = b""
            case 2:
                data[place : place + 1] = bytes([dice.randrange(256)])
            case 3:
                other = dice.choice(seeds)
                data[place:] = other[dice.randint(0, len(other)) :][:300]
            case _:
                data[0:1] = bytes([dice.randrange(32)])
    return bytes(data)
