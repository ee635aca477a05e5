"""The official OpenAI SDK, version 3 or newer, over this package's transport.

python examples/openai_sdk_transport.py      (OMNIGATE_BASE_URL and OMNIGATE_API_KEY: see `omnigate gateway`)
"""

import asyncio
import os

import httpx2
from openai import APITimeoutError, AsyncOpenAI

from omnigate import AnyIOTransport

MESSAGES = [{"role": "user", "content": "Say hi in French"}]


async def main():
    base_url = os.environ.get("OMNIGATE_BASE_URL", "http://localhost:8000")
    transport = AnyIOTransport()
    async with AsyncOpenAI(
        base_url=f"{base_url}/v1",
        api_key=os.environ["OMNIGATE_API_KEY"],
        http_client=httpx2.AsyncClient(transport=transport),
    ) as client:
        completion = await client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
        print(completion.choices[0].message.content)

        stream = await client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True)
        print("".join([chunk.choices[0].delta.content or "" async for chunk in stream]))

        hurried = client.with_options(timeout=1e-6, max_retries=0)
        try:
            await hurried.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
        except APITimeoutError as error:
            print("timed out:", error)
        print(transport)


asyncio.run(main())
