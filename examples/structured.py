"""Answers as values: one chat, and a batch that survives answers of the wrong form.

python examples/structured.py      (with OMNIGATE_BASE_URL and OMNIGATE_API_KEY set: see `omnigate gateway`)
"""

import msgspec

from omnigate import Client, ResponseFormatError


class Review(msgspec.Struct):
    """What a customer thinks."""

    product: str
    stars: int
    complaints: list[str]


FORM = '{"product": "Teapot", "stars": 2, "complaints": ["drips", "too small"]}'
TEXTS = [
    f"My teapot drips, and it is too small. Two stars. (As {FORM}.)",
    f"The lid of the jar broke on the first day! (As {FORM}.)",
    "No form is shown here, so the local gateway's echo is no JSON.",
]

with Client() as client:
    answer = client.chat(
        model="gpt-4o-mini",
        messages=[
            {"role": "system", "content": "You read reviews."},
            {"role": "user", "content": TEXTS[0]},
        ],
        response_type=Review,
    )
    print(f"{answer.content}\n→ {answer.parsed.stars} stars, {', '.join(answer.parsed.complaints)}")

    with client.batch(TEXTS, model="gpt-4o-mini", response_type=Review, response_retries=1) as batch:
        for outcome in batch:
            if outcome.error is None:
                print(outcome.index, outcome.response.parsed)
            elif isinstance(outcome.error, ResponseFormatError):
                print(outcome.index, "did not fit:", outcome.error.problem)
            else:
                print(outcome.index, "failed:", outcome.error)
    print(
        f"{batch.stats.succeeded} parsed, {batch.stats.retries} asked again, {batch.stats.cost_usd:.6f} USD"
    )
