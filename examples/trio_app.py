"""Three concurrent questions under trio.

python examples/trio_app.py      (with OMNIGATE_BASE_URL and OMNIGATE_API_KEY set: see `omnigate gateway`)
"""

import trio

from omnigate import AsyncClient


async def ask(client: AsyncClient, question: str) -> None:
    answer = await client.chat(model="gpt-4o-mini", messages=question)
    print(f"{question} -> {answer.content}")


async def main() -> None:
    async with AsyncClient() as client:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for question in ("What is a nursery?", "What is a cancel scope?", "What is a checkpoint?"):
                    nursery.start_soon(ask, client, question)


trio.run(main)
