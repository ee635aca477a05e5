"""One call, from arguments to an answer: headers, attempts and the waits between them, errors, bounds.

Everything that all calls have in common is here and only here; a method of a client says what is special
to it. The session owns the transport and nothing else: no task, no thread, no timer.

What an await leaves behind when it is cancelled: before the head has come it is the transport's to clean
up; after it, the response is closed by whoever holds it (`exchange` here, a stream in `streaming.py`).
"""

from __future__ import annotations

import math
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar, TypeVarTuple, cast

import anyio
import httpx
import msgspec

from omnigate._batch.pace.gate import Gates
from omnigate._calls.attempts import Attempts, Call
from omnigate._calls.configuration import Configuration, warn_of_plaintext_key
from omnigate._calls.failures import connection_error, invalid_response, response_error
from omnigate._calls.retry import RetryConfig
from omnigate._runtime.isolation import bounded, isolated
from omnigate._runtime.pauses import Pauses
from omnigate._transport import AnyIOTransport, adapt, default_transport
from omnigate._transport.adapters import async_chunks, close_stream
from omnigate._transport.bodies import BodyReader, too_long
from omnigate._transport.exchange import ResponseStream
from omnigate._transport.messages import RawResponse, request_head
from omnigate._wire.arguments import (
    USER_ID_HEADER,
    Timeout,
    check_base_url,
    check_headers,
    check_key,
    check_timeout,
    check_user_id,
)
from omnigate._wire.checks import check_integer, check_verify, refusal
from omnigate._wire.endpoints import Endpoint
from omnigate._wire.options import CallOptions, check_options
from omnigate._wire.redaction import mask, secrets_of
from omnigate._wire.structs import decoder_for, encode
from omnigate.exceptions import (
    APIError,
    ClientClosedError,
    ConnectionError,
    GatewayError,
    InvalidResponseError,
)

T = TypeVar("T")

Args = TypeVarTuple("Args")

MAX_RESPONSE_BYTES: Final = 64 << 20

MAX_ERROR_BYTES: Final = 1 << 20

_NO_OPTIONS: Final = CallOptions()


class Session:
    """What the clients share: configuration, and the way from a request to an answer.

    Attributes:
        owner: the name of the client's class, as the program sees it, for errors that name a method.
    """

    owner = "AsyncClient"

    def __init__(
        self,
        *,
        base_url: str,
        key_header: str,
        key: str | None,
        user_id: str | None = None,
        timeout: Timeout = 60.0,
        retries: int = 2,
        retry_config: RetryConfig | None = None,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | httpx.BaseTransport | None = None,
        verify: bool | ssl.SSLContext = True,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
    ) -> None:
        check_verify(verify)
        if retry_config is not None and not isinstance(retry_config, RetryConfig):
            raise refusal("retry_config", retry_config, "be a RetryConfig, or None", is_type=True)
        if retry_config is None:
            check_integer(retries, "retries", minimum=0)
        self.retry_config: RetryConfig = retry_config or RetryConfig(max_retries=retries)
        self.max_response_bytes: int = check_integer(max_response_bytes, "max_response_bytes", minimum=1)
        self._extensions = {"timeout": check_timeout(timeout)}
        self._own_headers = check_headers(headers, "headers")
        self._key_header = key_header
        self._key_argument = key_header.removeprefix("x-").replace("-", "_")  # what its errors name
        self._has_warned = transport is not None  # where that sends the key to is its owner's to know
        self._lock = threading.RLock()  # of who changes the configuration
        key, user_id = check_key(key, self._key_argument), check_user_id(user_id)
        url = check_base_url(base_url)
        self._configuration: Configuration
        self._configure(url, key, user_id)
        self._closed = False
        self._pauses = Pauses()
        self._transport = default_transport(url, verify) if transport is None else adapt(transport)
        self._is_own = isinstance(self._transport, AnyIOTransport)  # needs no isolation
        self.gates: Gates = Gates()

    # The configuration may be changed between calls, as with 0.1.0, and while other threads call.

    @property
    def base_url(self) -> str:
        """The gateway's address, without a trailing slash."""
        return self._configuration.address

    @base_url.setter
    def base_url(self, value: str) -> None:
        url = check_base_url(value)
        with self._lock:
            old = self._configuration
            self._configure(url, old.key, old.user_id)

    @property
    def key(self) -> str | None:
        """The key that is sent."""
        return self._configuration.key

    @key.setter
    def key(self, value: str | None) -> None:
        key = check_key(value, self._key_argument)
        with self._lock:
            old = self._configuration
            self._configure(old.base_url, key, old.user_id)

    @property
    def user_id(self) -> str | None:
        """The end user whom calls are attributed to, unless they say otherwise."""
        return self._configuration.user_id

    @user_id.setter
    def user_id(self, value: str | None) -> None:
        user_id = check_user_id(value)
        with self._lock:
            old = self._configuration
            self._configure(old.base_url, old.key, user_id)

    def _configure(self, base_url: httpx.URL, key: str | None, user_id: str | None) -> None:
        """Take over a configuration, unless the warning of a key in the clear is an error."""
        configuration = Configuration(base_url, self._key_header, key, user_id, self._own_headers)
        if any(configuration.secrets) and not self._has_warned:
            self._has_warned = warn_of_plaintext_key(base_url)
        self._configuration = configuration

    @property
    def max_connections(self) -> int | None:
        """How many calls our own transport makes at once; None for no limit, or none that is known."""
        return self._transport.max_connections if isinstance(self._transport, AnyIOTransport) else None

    def prepare(
        self,
        endpoint: Endpoint,
        *,
        body: object = None,
        suffix: str = "",
        query: Mapping[str, str] | None = None,
        user_id: str | None = None,
        secrets: tuple[str, ...] = (),
        options: CallOptions = _NO_OPTIONS,
    ) -> Call:
        """Return a call of `endpoint`, all of it checked.

        Args:
            endpoint: what is called.
            body: what is sent as JSON; None for nothing.
            suffix: the end of the path, percent-encoded.
            query: the query's parameters.
            user_id: in place of the client's; "" for none.
            secrets: what of the body must not be in an error.
            options: of the call.
        """
        if self._closed:
            raise ClientClosedError("the client is closed; create a new one")
        content = None if body is None else encode(body)
        configuration = self._configuration  # once: another thread may replace it
        template = configuration.templates.get(endpoint)
        if template is None:
            template = configuration.add_template(endpoint, has_body=body is not None)
        url, headers, head = template
        extensions = self._extensions
        deadline_seconds: float | None = None
        if suffix or query:
            url = httpx.URL(f"{configuration.address}{endpoint.path}{suffix}", params=query)
        if options or user_id is not None:
            extra_headers, timeout, deadline_seconds = check_options(options, f"{self.owner}.{endpoint.name}")
            if timeout is not None:
                extensions = {"timeout": timeout}
            checked_user_id = check_user_id(user_id)
            if checked_user_id is not None or extra_headers:
                headers = headers.copy()
                if checked_user_id:
                    headers[USER_ID_HEADER] = checked_user_id.encode("latin-1")
                elif checked_user_id is not None:
                    headers.pop(USER_ID_HEADER, None)
                headers.update(extra_headers)
                secrets += secrets_of(extra_headers)
        if self._is_own:
            if url is not template.url or headers is not template.headers:
                head = request_head(endpoint.method, url.raw_path, list(headers.items()))
            if content is not None:
                head += b"content-length: %d\r\n" % len(content)
        return Call(
            endpoint,
            url,
            configuration.origin,
            headers,
            head if self._is_own else None,
            content,
            extensions,
            deadline_seconds,
            secrets + configuration.secrets if secrets else configuration.secrets,
        )

    def attempts(self, call: Call) -> Attempts:
        """Return the attempts of a call that begins now."""
        return Attempts(call, self.retry_config, self.base_url, self._pauses)

    def decode(self, kind: Any, response: httpx.Response, body: bytes, call: Call) -> Any:
        """Return the body of an answer to `call` as the promised type.

        Raises:
            InvalidResponseError: it is not of that type.
        """
        try:
            return decoder_for(kind).decode(body)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            problem = str(error)
        # outside of the except clause, because some of those errors carry the whole body
        raise invalid_response(response, body, problem, call.secrets, show_body=not call.endpoint.mints_key)

    def exchange(
        self, call: Call, *, accept: int | None = None, attempts: Attempts | None = None
    ) -> Awaitable[tuple[httpx.Response, bytes, Attempts]]:
        """Send `call`, as often as the policy says, and return the head and the body of its answer.

        Args:
            call: the request.
            accept: a status outside of 200 to 299 that is an answer, too.
            attempts: of a call that began earlier; those of one that begins now if left out.

        Raises:
            APIError: an answer that is an error.
            ConnectionError: no answer.
            TimeoutError: no answer in time.
            ClientClosedError: the client was closed before there was an answer.

        """
        attempts = attempts or self.attempts(call)
        if attempts.deadline == math.inf:
            return self._exchange(call, attempts, accept)
        return self._exchange_in_time(call, attempts, accept)

    async def _exchange_in_time(
        self, call: Call, attempts: Attempts, accept: int | None
    ) -> tuple[httpx.Response, bytes, Attempts]:
        with anyio.CancelScope(deadline=attempts.deadline):
            return await self._exchange(call, attempts, accept)
        raise attempts.overdue()

    async def _exchange(
        self, call: Call, attempts: Attempts, accept: int | None
    ) -> tuple[httpx.Response, bytes, Attempts]:
        while True:
            attempts.count += 1
            try:
                response, body = await self.run(self.attempt, call, accept)
                return response, body, attempts
            except APIError as error:
                failure: GatewayError = error
            except ConnectionError as error:
                failure = self.failure_of(error, attempts) if self._closed else error
            except Exception as error:
                if not (self._closed or isinstance(error, httpx.TransportError)):
                    raise
                failure = self.failure_of(error, attempts)
            try:
                await attempts.recover(failure)
            finally:
                del failure  # breaks the cycle of the error, its traceback and this frame

    def failure_of(self, error: Exception, attempts: Attempts) -> GatewayError:
        """Return the typed error for what came out of the transport during a call, chained to it.

        Once the client is closed, that is why, whatever a transport makes of being closed while it is in use.

        Args:
            error: an `httpx.TransportError`; while the client is closed, anything.
            attempts: those of the call.

        """
        failure: GatewayError
        if self._closed:
            failure = attempts.closed()
        else:
            failure = connection_error(cast("httpx.TransportError", error), self.base_url, attempts.count)
        failure.__cause__ = error
        return failure

    async def attempt(self, call: Call, accept: int | None) -> tuple[httpx.Response, bytes]:
        """Send `call` once and return the head and the body of its answer; to be awaited through `run`.

        What has the status `accept` is an answer if its body is the gateway's, and no proxy's page.

        Raises:
            APIError: an answer that is an error.
            httpx.TransportError: as the transport raises it.
        """
        response = await self._transport.handle_async_request(call.request())
        status = response.status_code
        is_answer = 200 <= status < 300
        if is_answer and isinstance(response, RawResponse) and not response.is_encoded:
            whole = cast("ResponseStream", response.stream).take_whole()  # most answers come in one piece
            if whole is not None and len(whole) <= self.max_response_bytes:
                return response, whole
            if whole is not None:
                raise too_long(response, self.max_response_bytes)
        chunks: AsyncIterator[bytes] | None = None
        try:
            chunks = async_chunks(response.stream)
            if is_answer:
                return response, await BodyReader(response, chunks, self.max_response_bytes).read()
            body = await self._start(response, chunks)
            try:
                if status == accept and _is_report(body):
                    return response, body
                raise _error(response, body, call)
            finally:
                del body  # it may repeat a key, and this frame's locals are shown with the error
        finally:
            await self.discard(response, chunks)  # not cut short, as foreign closing may be

    async def open(self, call: Call) -> httpx.Response:
        """Send `call` once and return its answer unread; whoever called closes it.

        Raises:
            httpx.TransportError: as the transport raises it.
            ClientClosedError: the client is closed, or was before the answer came.

        """
        if self._closed:
            raise ClientClosedError("the client is closed; create a new one")
        try:
            return await self._transport.handle_async_request(call.request())
        except Exception as error:
            if not self._closed:
                raise
            raise ClientClosedError("the client was closed during the call") from error

    def run(self, func: Callable[[*Args], Awaitable[T]], *args: *Args) -> Awaitable[T]:
        """Call `func(*args)`, which uses the transport, in the way the transport needs; to be awaited."""
        return func(*args) if self._is_own else isolated(func, *args)

    async def discard(self, response: httpx.Response, chunks: AsyncIterator[bytes] | None) -> None:
        """Close a response, at once or within a second; what has not been read of it is given up."""
        if isinstance(response, RawResponse):
            cast("ResponseStream", response.stream).abort()
            return

        async def close() -> None:
            await close_stream(response.stream, chunks)

        await bounded(close)

    async def error_of(self, response: httpx.Response, chunks: AsyncIterator[bytes], call: Call) -> APIError:
        """Return the typed error that an error response is; of its body is read what is useful and comes."""
        return _error(response, await self._start(response, chunks), call)

    async def _start(self, response: httpx.Response, chunks: AsyncIterator[bytes]) -> bytes:
        body = b""
        with suppress(InvalidResponseError):  # it is encoded in an unknown way: the head says enough
            body = await BodyReader(response, chunks, self.max_response_bytes).read_start(MAX_ERROR_BYTES)
        return body

    async def aclose(self) -> None:
        """Close the transport. What is in flight or waits fails, at once; a second time does nothing."""
        if not self._closed:
            self._closed = True
            self._pauses.close()
            await self.run(self._transport.aclose)

    def __repr__(self) -> str:
        key = None if self.key is None else mask(self.key)
        return f"base_url={self.base_url!r}, api_key={key!r}{', closed' if self._closed else ''}"


class _Report(msgspec.Struct):
    status: str


def _is_report(body: bytes) -> bool:
    """Return whether the body of an error is the gateway's answer, and not a proxy's page."""
    try:
        decoder_for(_Report).decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    return True


def _error(response: httpx.Response, body: bytes, call: Call) -> APIError:
    return response_error(response, body, secrets=call.secrets, show_body=not call.endpoint.mints_key)
