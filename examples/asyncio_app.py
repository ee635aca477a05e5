"""Three concurrent questions under asyncio; the first failure cancels the others.

python examples/asyncio_app.py      (with OMNIGATE_BASE_URL and OMNIGATE_API_KEY set: see `omnigate gateway`)
"""

import asyncio

from omnigate import AsyncClient


async def main() -> None:
    questions = ["What is a task group?", "What is a coroutine?", "What is an event loop?"]
    async with AsyncClient() as client, asyncio.timeout(30), asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.chat(model="gpt-4o-mini", messages=text)) for text in questions]
    for question, task in zip(questions, tasks, strict=True):
        print(f"{question} -> {task.result().content}")


asyncio.run(main())
