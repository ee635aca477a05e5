"""A chat whose answer has to fit a type: asks until one does, within one deadline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from omnigate._calls.attempts import Call, Fetching
from omnigate._calls.racing import hedged
from omnigate._calls.session import Session
from omnigate._calls.structured import Asks
from omnigate.exceptions import GatewayError
from omnigate.models import ChatResponse

T = TypeVar("T")


async def fetch_fitting(
    session: Session, prepare: Callable[..., Call], asks: Asks[T], hedge_after: float | None
) -> ChatResponse[T]:
    """Return the first answer that fits.

    Args:
        session: makes the calls.
        prepare: returns the call of a request, given as `body`.
        asks: what to ask.
        hedge_after: as in `fetch_copies`, for each ask.

    Raises:
        ResponseFormatError: none of the answers fits.
        GatewayError: there is no answer; the error has those that did not fit.
    """
    first: Fetching[ChatResponse] | None = None
    sent = 0
    while True:
        try:
            call = prepare(body=asks.request)
            copies = [session.fetching(ChatResponse, call) for _ in range(1 if hedge_after is None else 2)]
            if first is None:
                first = copies[0]
            else:
                for copy in copies:
                    copy.follow(first, sent)
            response = await fetch_copies(copies, hedge_after)
        except GatewayError as error:
            error.billed = asks.rejected
            raise
        sent = response.meta.attempts
        if asks.settles(response, call.secrets):
            return cast("ChatResponse[T]", response)


async def fetch_copies(copies: Sequence[Fetching[ChatResponse]], hedge_after: float | None) -> ChatResponse:
    """Return the first answer of one or two copies of a call, which are held to the time at which it began.

    Args:
        copies: one; or two, if there is a `hedge_after`.
        hedge_after: seconds after which to send the second copy; None for none.
    """
    if hedge_after is None:
        return await copies[0].run()
    return await hedged([copy.run for copy in copies], hedge_after)
