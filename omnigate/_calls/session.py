"""One call, from arguments to typed result: builds the request, runs the attempts, decodes the response.

Everything calls have in common is here; a client's method adds only what is specific to its endpoint. It runs
no task, thread or timer.
"""

from __future__ import annotations

import copy
import ssl
from collections.abc import Awaitable, Mapping
from typing import Any, Final

import httpx

from omnigate._calls.attempts import Answering, Call, Fetching, Means, Opening, Reporting, decode_answer
from omnigate._calls.configuration import Configuration, replace_headers
from omnigate._calls.retry import RetryConfig
from omnigate._runtime.pauses import Pauses
from omnigate._transport.carrier import MAX_RESPONSE_BYTES, Carrier, carrier_over
from omnigate._transport.direct_carrier import DirectCarrier
from omnigate._wire.arguments import (
    USER_ID_HEADER,
    Timeout,
    check_timeout,
    check_user_id,
    sets_key,
)
from omnigate._wire.checks import check_integer, check_verify, refusal
from omnigate._wire.endpoints import Endpoint
from omnigate._wire.head import Meta
from omnigate._wire.options import CallOptions, check_options
from omnigate._wire.redaction import secrets_of
from omnigate._wire.results import DictResult, ListResult, R, list_with_meta
from omnigate._wire.structs import encode
from omnigate._wire.values import Id, Integer
from omnigate.exceptions import ClientClosedError
from omnigate.models import ChatRequest, encode_request

_NO_OPTIONS: Final = CallOptions()


class Session:
    """Turns calls into results.

    Attributes:
        owner: the name of the client's class, as the program sees it, for errors that name a method.
        configuration: the settings all calls have in common.
        carrier: sends the requests.
        means: the arguments of all attempts: the carrier, the retry policy, the pauses.
    """

    owner = "AsyncClient"

    def __init__(
        self,
        *,
        base_url: str | None,
        key_header: str,
        key: str | None,
        key_variable: str | None = None,
        user_id: Id | None = None,
        timeout: Timeout = 60.0,
        retries: Integer = 2,
        retry_config: RetryConfig | None = None,
        headers: Mapping[str, str | None] | None = None,
        transport: object = None,
        verify: bool | ssl.SSLContext = True,
        max_response_bytes: Integer = MAX_RESPONSE_BYTES,
    ) -> None:
        check_verify(verify)
        if retry_config is not None and not isinstance(retry_config, RetryConfig):
            raise refusal("retry_config", retry_config, "be a RetryConfig, or None", is_type=True)
        if retry_config is None:
            retry_config = RetryConfig(max_retries=check_integer(retries, "retries", minimum=0))
        max_response_bytes = check_integer(max_response_bytes, "max_response_bytes", minimum=1)
        self._extensions = {"timeout": check_timeout(timeout)}
        # A user's own transport may send the key anywhere, without a warning.
        warns = transport is None
        self.configuration: Configuration = Configuration(
            base_url, key_header, key, user_id, headers, warns=warns, key_variable=key_variable
        )
        url = self.configuration.settings.base_url
        self.carrier: Carrier = carrier_over(transport, url, verify, max_response_bytes)
        self._pauses = Pauses()
        self.means: Means = (self.carrier, retry_config, self._pauses)

    def prepare(
        self,
        endpoint: Endpoint,
        *,
        body: object = None,
        suffix: str = "",
        query: Mapping[str, str] | None = None,
        user_id: Id | None = None,
        secrets: tuple[str, ...] = (),
        options: CallOptions = _NO_OPTIONS,
    ) -> Call:
        """Return a call of `endpoint`, with its arguments checked.

        Args:
            endpoint: the endpoint.
            body: the body, sent as JSON; None for none.
            suffix: the end of the path, percent-encoded.
            query: the query parameters.
            user_id: replaces the client's; "" for none.
            secrets: text in the body that errors must not show.
            options: the options of the call.
        """
        if self._pauses.is_closed:
            raise ClientClosedError("the client is closed; create a new one")
        content: bytes | None = None
        if body is not None:
            content = encode_request(body) if isinstance(body, ChatRequest) else encode(body)
        settings = self.configuration.settings  # once: another thread may replace them
        template = settings.templates.get(endpoint)
        if template is None:
            template = settings.add_template(endpoint, has_body=body is not None)
        url, headers, head = template
        is_usual = True
        extensions = self._extensions
        deadline_seconds: float | None = None
        if suffix or query:
            is_usual = False
            url = httpx.URL(f"{settings.address}{endpoint.path}{suffix}", params=query)
        if options or user_id is not None:
            extra_headers, timeout, deadline_seconds = check_options(options, f"{self.owner}.{endpoint.name}")
            if timeout is not None:
                extensions = {"timeout": timeout}
            checked_user_id = check_user_id(user_id)
            if checked_user_id is not None or extra_headers:
                is_usual = False
                headers = headers.copy()
                if checked_user_id:
                    headers[USER_ID_HEADER] = checked_user_id.encode("latin-1")
                elif checked_user_id is not None:
                    headers.pop(USER_ID_HEADER, None)
                implied = settings.implied_key_header
                if implied is not None and sets_key(extra_headers, implied):
                    headers.pop(implied, None)
                replace_headers(headers, extra_headers)
                secrets += secrets_of(extra_headers)
        return Call(
            endpoint,
            url,
            settings.origin,
            headers,
            head if is_usual else None,
            content,
            extensions,
            deadline_seconds,
            secrets + settings.secrets if secrets else settings.secrets,
            settings.address,
        )

    @property
    def is_ready(self) -> bool:
        """Whether a call that begins outside of the event loop is likely to end there."""
        return self.means[0].is_ready

    def for_threads(self) -> Session:
        """Return the same session, for calls that begin in other threads than the event loop's."""
        carrier, config, pauses = self.means
        if not carrier.is_direct:
            return self
        twin = copy.copy(self)
        twin.means = DirectCarrier(carrier), config, pauses
        return twin

    def fetching(self, kind: type[R], call: Call) -> Fetching[R]:
        """Return the attempts of a call that begins now and results in a `kind`."""
        return Fetching(kind, call, self.means)

    def opening(self, call: Call) -> Opening:
        """Return the attempts of a call that begins now and whose response is streamed."""
        return Opening(call, self.means)

    def fetch(self, kind: type[R], call: Call) -> Awaitable[R]:
        """Return the result of a call, a `kind`, with its `meta`.

        The errors are those of `Attempts.run` and `decode_answer`.
        """
        attempts = Fetching(kind, call, self.means)
        return attempts.repeat() if call.deadline_seconds is None else attempts.run()

    async def fetch_list(self, kind: type[R], call: Call) -> ListResult[R]:
        """Return the result of a call that answers with a list."""
        items, meta = await self.fetch_any(list[kind], call)  # type: ignore[valid-type]
        return list_with_meta(items, meta)

    async def fetch_dict(self, call: Call, *, reports: bool = False) -> DictResult[Any]:
        """Return the result of a call that answers with a JSON object.

        Args:
            call: the request.
            reports: whether a 503 from the gateway is a result, too.
        """
        attempts = Reporting(call, self.means) if reports else None
        fields, meta = await self.fetch_any(dict[str, Any], call, attempts)
        return DictResult(fields, meta=meta)

    async def fetch_any(self, kind: Any, call: Call, attempts: Answering | None = None) -> tuple[Any, Meta]:
        """Return the result of a call, of any type, and its metadata; by default, the call begins now."""
        attempts = attempts or Answering(call, self.means)
        answer = await attempts.run()
        return decode_answer(kind, answer, call), attempts.meta(answer)

    def perform(self, call: Call) -> Awaitable[object]:
        """Make a call whose response has no content."""
        return Answering(call, self.means).run()

    async def aclose(self) -> None:
        """Close the transport; idempotent. Calls in flight or waiting fail immediately."""
        if not self._pauses.is_closed:
            self._pauses.close()
            await self.carrier.aclose()

    def __repr__(self) -> str:
        return f"{self.configuration!r}{', closed' if self._pauses.is_closed else ''}"
