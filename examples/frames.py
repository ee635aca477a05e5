"""A frame of reviews in, and a frame with the values of the answers out; what they will cost is asked before.

python examples/frames.py    (with OMNIGATE_BASE_URL and OMNIGATE_API_KEY set: see `omnigate gateway`)
"""

from dataclasses import dataclass
from typing import Literal

import polars

from omnigate import Client


@dataclass
class Verdict:
    """What a review says."""

    mood: Literal["happy", "unhappy"]
    stars: int


reviews = polars.DataFrame({"review": ["Two stars, it drips.", "Five stars, great cake!"]})
prompt = 'Judge in the form of {{"mood": "happy", "stars": 4}}: {review}'
arguments = {"model": "gpt-4o-mini", "prompt": prompt, "response_type": Verdict, "max_tokens": 50}

with Client() as client:
    print(client.estimate(reviews, **arguments).cost_usd)
    answers = client.batch(reviews, **arguments).to_frame("polars")
    print(*answers["content"], sep="\n")
    print(answers.unnest("parsed").select("review", "mood", "stars", "cost_usd"))
