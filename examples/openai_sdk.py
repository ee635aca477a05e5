"""The official OpenAI SDK through the gateway: only the address and the key change.

python examples/openai_sdk.py      (with OMNIGATE_BASE_URL and OMNIGATE_API_KEY set: see `omnigate gateway`)
"""

import os

from openai import OpenAI

base_url = os.environ.get("OMNIGATE_BASE_URL", "http://localhost:8000")

with OpenAI(base_url=f"{base_url}/v1", api_key=os.environ["OMNIGATE_API_KEY"]) as client:
    messages = [{"role": "user", "content": "Say hi in French"}]
    completion = client.chat.completions.create(model="gpt-4o-mini", messages=messages)
    print(completion.choices[0].message.content, completion.usage)

    stream = client.chat.completions.create(
        model="gpt-4o-mini", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "" if chunk.choices else chunk.usage, end=" ")
    print()
