"""The local gateway's two chat endpoints.

Requests are checked in the order of `docs/protocol.md`: JSON syntax (422), key (401), rate limit (429),
budget (402), fields (422), provider.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from omnigate.testing._gateway.accounts import Project
from omnigate.testing._gateway.answers import BadRequestError, answer_json, unhandled
from omnigate.testing._gateway.connection import drop
from omnigate.testing._gateway.limits import Admission
from omnigate.testing._gateway.model import ModelAnswer, ProviderError, answer, provider_failure
from omnigate.testing._gateway.pricing import provider_of_model
from omnigate.testing._gateway.schemas import ChatBody, CompletionBody, read_json, validate
from omnigate.testing._gateway.state import CACHE_SECONDS, State, faults_of
from omnigate.testing._gateway.streams import EventStream, TextStream
from omnigate.testing._gateway.usage import UsageRecord

_STORABLE: Final = re.compile(r"[\x01-\xff]{0,128}\Z", re.DOTALL)

_MAX_USER_ID: Final = 255


@dataclass
class Admitted:
    """A chat request that passed the checks before its fields."""

    project: Project
    body: Any
    admission: Admission
    budgets: dict[str, str]
    user_id: str | None

    def headers(self) -> dict[str, str]:
        """Return the rate-limit and budget headers."""
        return {**self.admission.headers(), **self.budgets}


async def admit(state: State, request: Request) -> Admitted:
    """Run the checks that come before the fields.

    Raises:
        BadRequestError: a check failed.
    """
    body = await read_json(request)
    project = state.authenticate(request).project
    admission = state.limiter.admit(project.id, project.rate_limit_per_min, state.clock())
    if not admission.allowed:
        headers = {"retry-after": str(admission.reset_seconds), **admission.headers()}
        raise BadRequestError(429, "Rate limit exceeded", headers)
    state.check_budgets(project)
    user_id = request.headers.get("x-user-id")
    return Admitted(project, body, admission, state.budget_headers(project), user_id)


async def chat(state: State, request: Request) -> ASGIApp:
    """`POST /v1/chat`."""
    admitted = await admit(state, request)
    body = validate(ChatBody, admitted.body)
    contents = [message.content for message in body.messages]
    prompt = _last_user_content([(message.role, message.content) for message in body.messages])
    if body.stream:
        result = await _stream_result(state, request, admitted, body.model, contents, prompt, body.max_tokens)
        headers = {
            "x-request-id": str(uuid.uuid4()),
            "x-llmgw-provider": provider_of_model(body.model) or "",
            "x-llmgw-model": body.model,
            "content-type": "text/plain; charset=utf-8",
            **admitted.headers(),
        }
        record = _recorder(state, admitted, body.model, result)
        if not _can_be_stored(body.model, admitted.user_id):
            record(False)
            return _after_billing(body.model)
        return TextStream(state, request, result, record, headers)
    key = _cache_key(admitted.project, body)
    cached = None if key is None else state.cache.get(key)
    if cached is not None and state.clock() - cached[0] < CACHE_SECONDS:
        return _cached_answer(state, admitted, cached[1])
    started = time.perf_counter()
    try:
        result = await _first_success(
            state,
            request,
            admitted,
            [model for model in dict.fromkeys([body.model, *body.fallback_models]) if model],
            contents,
            prompt,
            body.max_tokens,
        )
    except ProviderError as error:
        _record(state, admitted, body.model, None, failed=True)
        raise BadRequestError(error.status, error.message) from None
    latency_ms = int((time.perf_counter() - started) * 1_000)
    _record(state, admitted, result.model, result, latency_ms=latency_ms)
    if not _can_be_stored(result.model, admitted.user_id):
        return _after_billing(result.model)
    answered = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "provider": provider_of_model(result.model),
        "model": result.model,
        "content": result.text,
        "usage": result.usage(),
        "cost_usd": result.micro_usd / 1_000_000,
        "finish_reason": result.finish_reason,
        "cached": False,
        "fallback_used": result.model != body.model,
        "latency_ms": latency_ms,
    }
    if key is not None and result.model == body.model:
        state.cache[key] = (state.clock(), answered)
    return _chat_response(admitted, answered)


async def completions(state: State, request: Request) -> ASGIApp:
    """`POST /v1/chat/completions`."""
    admitted = await admit(state, request)
    body = validate(CompletionBody, admitted.body)
    headers = admitted.headers()
    problem = _unsupported(body)
    if problem is not None:
        return _envelope(400, problem, headers)
    texts = [(message.role, str(message.content or "")) for message in body.messages]
    contents = [content for _, content in texts]
    prompt = _last_user_content(texts)
    max_tokens = body.max_tokens or body.max_completion_tokens
    completion_id = f"chatcmpl-{uuid.uuid4().hex}"
    if body.stream:
        try:
            result = await _stream_result(state, request, admitted, body.model, contents, prompt, max_tokens)
        except BadRequestError as error:
            return _envelope(error.status, error.detail, headers)
        record = _recorder(state, admitted, body.model, result)
        if not _can_be_stored(body.model, admitted.user_id):
            record(False)
            return _after_billing(body.model)
        headers = {
            "x-request-id": completion_id,
            "cache-control": "no-cache",
            "content-type": "text/event-stream; charset=utf-8",
            **headers,
        }
        include_usage = bool((body.stream_options or {}).get("include_usage"))
        return EventStream(
            state, request, result, record, headers, model=body.model, include_usage=include_usage
        )
    started = time.perf_counter()
    try:
        result = await _first_success(state, request, admitted, [body.model], contents, prompt, max_tokens)
    except ProviderError as error:
        _record(state, admitted, body.model, None, failed=True)
        return _envelope(error.status, error.message, headers)
    latency_ms = int((time.perf_counter() - started) * 1_000)
    _record(state, admitted, result.model, result, latency_ms=latency_ms)
    if not _can_be_stored(result.model, admitted.user_id):
        return _after_billing(result.model)
    answered = {
        "id": completion_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": result.model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": result.text},
                "finish_reason": result.finish_reason,
            }
        ],
        "usage": result.usage(),
    }
    return answer_json(answered, 200, headers)


def check_provider(state: State, project: Project, model: str) -> str:
    """Return a model's provider, after checking that the project can use it now.

    Raises:
        ProviderError: it cannot.
    """
    provider = provider_of_model(model)
    if provider is None:
        raise ProviderError(400, f"No provider registered for model {model!r}")
    if provider not in project.providers:
        message = f"No {provider} key configured for this project. Add one via POST /v1/keys."
        raise ProviderError(400, message)
    if state.breakers.is_open(provider, project.id, state.clock()):
        raise ProviderError(503, f"{provider} circuit is open")
    return provider


async def _first_success(
    state: State,
    request: Request,
    admitted: Admitted,
    models: Sequence[str],
    contents: Sequence[str],
    prompt: str,
    max_tokens: int | None,
) -> ModelAnswer:
    """Return the answer of the first candidate that succeeds, or raise the last one's error."""
    faults = faults_of(request)
    last = ProviderError(502, "No provider candidate could handle the request")
    for model in models:
        try:
            provider = check_provider(state, admitted.project, model)
            if state.latency_seconds:
                await anyio.sleep(state.latency_seconds)
            failure = provider_failure(provider, contents, state.accidents.faults(faults))
            failed = failure is not None and failure.transient
            state.breakers.record(provider, admitted.project.id, state.clock(), failed=failed)
            if failure is not None:
                raise failure
            return answer(model, contents, prompt, max_tokens, faults)
        except ProviderError as error:
            last = error
    raise last


async def _stream_result(
    state: State,
    request: Request,
    admitted: Admitted,
    model: str,
    contents: Sequence[str],
    prompt: str,
    max_tokens: int | None,
) -> ModelAnswer | ProviderError:
    """Return the answer or failure that a stream will contain.

    Raises:
        BadRequestError: the provider could not even be called.
    """
    try:
        provider = check_provider(state, admitted.project, model)
    except ProviderError as error:  # not recorded, unlike the same failure of a call that does not stream
        raise BadRequestError(error.status, error.message) from None
    if state.latency_seconds:
        await anyio.sleep(state.latency_seconds)
    faults = faults_of(request)
    failure = provider_failure(provider, contents, state.accidents.faults(faults))
    failed = failure is not None and failure.transient
    state.breakers.record(provider, admitted.project.id, state.clock(), failed=failed)
    return failure or answer(model, contents, prompt, max_tokens, faults)


def _recorder(state: State, admitted: Admitted, model: str, result: ModelAnswer | ProviderError) -> Any:
    started = time.perf_counter()

    def record(failed: bool) -> None:
        latency_ms = int((time.perf_counter() - started) * 1_000)
        found = None if isinstance(result, ProviderError) else result
        _record(state, admitted, model, found, latency_ms=latency_ms, failed=failed)

    return record


def _record(
    state: State,
    admitted: Admitted,
    model: str,
    result: ModelAnswer | None,
    *,
    latency_ms: int = 0,
    cached: bool = False,
    failed: bool = False,
) -> None:
    state.usage.add(
        UsageRecord(
            state.clock(),
            admitted.project.id,
            admitted.project.org.id,
            provider_of_model(model),
            model,
            admitted.user_id,
            prompt_tokens=0 if result is None else result.prompt_tokens,
            completion_tokens=0 if result is None else result.completion_tokens,
            micro_usd=0 if result is None or cached else result.micro_usd,
            latency_ms=latency_ms,
            cached=cached,
            failed=failed,
        )
    )


def _cached_answer(state: State, admitted: Admitted, stored: dict[str, Any]) -> Response:
    usage = stored["usage"]
    result = ModelAnswer(
        stored["model"], stored["content"], (), usage["prompt_tokens"], usage["completion_tokens"], "stop"
    )
    _record(state, admitted, result.model, result, cached=True)
    return _chat_response(admitted, {**stored, "cost_usd": 0.0, "cached": True, "latency_ms": 0})


def _chat_response(admitted: Admitted, answered: dict[str, Any]) -> Response:
    headers = {
        **admitted.headers(),
        "x-request-id": str(uuid.uuid4()),
        "x-llmgw-provider": answered["provider"],
        "x-llmgw-model": answered["model"],
        "x-llmgw-cached": "true" if answered["cached"] else "false",
        "x-llmgw-fallback": "true" if answered["fallback_used"] else "false",
    }
    return answer_json(answered, 200, headers)


def _cache_key(project: Project, body: ChatBody) -> Any:
    """Return the cache key of a request, or None if its answer must not be cached."""
    if body.temperature != 0 or not body.cache or provider_of_model(body.model) is None:
        return None
    messages = tuple((message.role, message.content) for message in body.messages)
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return project.id, body.model, messages, body.max_tokens, body.top_p, stop, body.seed


def _last_user_content(messages: Sequence[tuple[str, str]]) -> str:
    contents = [content for role, content in messages if role == "user"]
    return contents[-1] if contents else messages[-1][1]


def _unsupported(body: CompletionBody) -> str | None:
    if body.n is not None and body.n > 1:
        return "n > 1 is not supported"
    for message in body.messages:
        if message.role not in ("system", "developer", "user", "assistant"):
            return f"role {message.role!r} not supported"
        if isinstance(message.content, list):
            return "multimodal not supported"
    return None


def _can_be_stored(model: str, user_id: str | None) -> bool:
    return (
        bool(_STORABLE.match(model))
        and not ("\r" in model or "\n" in model)
        and len(user_id or "") <= _MAX_USER_ID
    )


def _after_billing(model: str) -> ASGIApp:
    """Return the gateway's response when it fails after paying the provider."""
    if "\r" in model or "\n" in model:
        return drop
    return unhandled()


def _envelope(status: int, message: str, headers: dict[str, str]) -> Response:
    kind = "provider_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": None, "code": None}
    return answer_json({"error": error}, status, headers)
