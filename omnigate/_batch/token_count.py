"""How many tokens a prompt has, roughly: there is no tokenizer here, and each provider has its own.

Tokenizers work on the bytes of UTF-8. English text has about four of them per token, code and other languages
three to five, and a Chinese or Japanese character (three bytes) is mostly one token. So a text has between a
fifth and a third as many tokens as bytes. Each message adds a few more, for its role and the marks around it.
"""

from __future__ import annotations

from typing import Final

from omnigate.models import ChatRequest

_BYTES_PER_TOKEN: Final = (5, 3)

_TOKENS_PER_MESSAGE: Final = (1, 8)


def size_of(request: ChatRequest) -> int:
    """Return the size of a request's messages in bytes of UTF-8."""
    return sum(
        len(text) if (text := message.content).isascii() else len(text.encode(errors="surrogatepass"))
        for message in request.messages
    )


def prompt_tokens_of(request: ChatRequest, size: int) -> tuple[int, int]:
    """Return between how many tokens a request's messages have.

    Args:
        request: the request.
        size: `size_of` it.
    """
    messages = len(request.messages)
    low, high = (
        -(-size // per_token) + messages * more
        for per_token, more in zip(_BYTES_PER_TOKEN, _TOKENS_PER_MESSAGE, strict=True)
    )
    return low, high
