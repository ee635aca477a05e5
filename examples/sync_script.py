"""A plain script: one call, its cost, and error handling.

python examples/sync_script.py      (with OMNIGATE_BASE_URL and OMNIGATE_API_KEY set: see `omnigate gateway`)
"""

import sys

from omnigate import APIError, Client, ConnectionError, RateLimitError

with Client() as client:
    try:
        answer = client.chat(model="gpt-4o-mini", messages="Say hi in French", max_tokens=50)
    except RateLimitError as error:
        sys.exit(f"rate limit reached; try again in {error.retry_after} s")
    except (APIError, ConnectionError) as error:
        sys.exit(f"no answer: {error}")
    print(answer.content)
    print(f"{answer.usage.total_tokens} tokens, {answer.cost_usd:.6f} USD, request {answer.meta.request_id}")
