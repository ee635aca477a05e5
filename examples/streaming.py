"""Three ways to stream: as text, with token usage, and from async code that stops early.

python examples/streaming.py      (with OMNIGATE_BASE_URL and OMNIGATE_API_KEY set: see `omnigate gateway`)
"""

import asyncio

from omnigate import AsyncClient, Client

with Client() as client:
    with client.chat_stream(model="gpt-4o-mini", messages="Stream me a haiku about rivers") as stream:
        for piece in stream:
            print(piece, end="", flush=True)
    print()

    with client.chat_stream(model="gpt-4o-mini", messages="And its price?", include_usage=True) as stream:
        print(stream.text(), stream.usage, stream.finish_reason)


async def first_words(count: int) -> str:
    words = []
    async with (
        AsyncClient() as client,
        client.chat_stream(model="gpt-4o-mini", messages="Tell me a long story, please") as stream,
    ):
        async for word in stream:
            words.append(word)
            if len(words) == count:
                break  # leaving the block stops the provider and frees the connection
    return "".join(words)


print(asyncio.run(first_words(3)))
