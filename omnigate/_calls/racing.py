"""Racing calls: the first that succeeds wins, and the others are cancelled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio

from omnigate._runtime.isolation import isolated
from omnigate.exceptions import GatewayError, RaceError

T = TypeVar("T")


async def race(calls: Sequence[Callable[[], Awaitable[T]]], *, stagger_seconds: float = 0.0) -> T:
    """Return the result of the first call that succeeds.

    Args:
        calls: what to call.
        stagger_seconds: the delay between one start and the next; a call that fails before the next has
            started raises its error immediately.

    Raises:
        RaceError: all of them failed.
        BaseException: any other exception of a call, unchanged.
    """
    # In a task of its own: anyio counts a cancellation of its own in a task below as one of the group's host,
    # and would take back asyncio's own cancellation of the host at that moment.
    return await isolated(_race, calls, stagger_seconds)


async def _race(calls: Sequence[Callable[[], Awaitable[T]]], stagger_seconds: float) -> T:
    results: list[T] = []
    errors: dict[int, GatewayError] = {}
    unexpected: list[BaseException] = []

    async def run(index: int) -> None:
        if index and stagger_seconds:
            await anyio.sleep(index * stagger_seconds)
        begun.add(index)
        try:
            results.append(await calls[index]())
        except anyio.get_cancelled_exc_class():
            raise
        except GatewayError as error:
            errors[index] = error
            if begun > errors.keys():
                return
        except BaseException as error:  # noqa: BLE001 - raised below, outside of the group
            unexpected.append(error)
        group.cancel_scope.cancel()

    begun: set[int] = set() if stagger_seconds else set(range(len(calls)))
    async with anyio.create_task_group() as group:
        for index in range(len(calls)):
            group.start_soon(run, index)
    try:
        if unexpected:
            raise unexpected[0]
        if results:
            return results[0]
        failures = [errors[index] for index in sorted(errors)]
        raise RaceError(f"all {len(failures)} calls failed", failures)
    finally:
        unexpected.clear()  # breaks the cycle of the error, its traceback and this frame
        errors.clear()


async def hedged(copies: Sequence[Callable[[], Awaitable[T]]], after_seconds: float) -> T:
    """Return the first answer of two copies of a call, the second sent after `after_seconds`.

    Source: Jeffrey Dean and Luiz André Barroso, "The Tail at Scale", Communications of the ACM 56 (2), 2013,
    "Hedged requests".

    Raises:
        GatewayError: the first error, if no copy succeeds; a failure before the second has begun is final.
    """
    try:
        return await race(copies, stagger_seconds=after_seconds)
    except RaceError as error:
        failure = error.exceptions[0]
    raise failure
