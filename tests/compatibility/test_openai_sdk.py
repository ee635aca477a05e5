"""The official `openai` package, pointed at the local gateway as the gateway's README promises."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from omnigate.testing import LocalGateway, ProviderFailure, StreamFailure

HI: Any = [{"role": "user", "content": "Say hi in French"}]


@pytest.fixture
def sdk(omnigate_gateway: LocalGateway) -> Iterator[openai.OpenAI]:
    url = f"{omnigate_gateway.url}/v1"
    with openai.OpenAI(base_url=url, api_key=omnigate_gateway.api_key, max_retries=0) as client:
        yield client


def test_the_openai_sdk_gets_a_completion_from_the_gateway(sdk: openai.OpenAI) -> None:
    completion = sdk.chat.completions.create(model="gpt-4o-mini", messages=HI)
    assert completion.choices[0].message.content == "echo[gpt-4o-mini]: Say hi in French"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens == 9


def test_the_openai_sdk_gets_a_stream_with_usage_from_the_gateway(sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(
        model="gpt-4o-mini", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "echo[gpt-4o-mini]: Say hi in French"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 9
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"


def test_the_openai_sdk_lists_and_retrieves_models_of_the_gateway(sdk: openai.OpenAI) -> None:
    assert "gpt-4o-mini" in [model.id for model in sdk.models.list()]
    assert sdk.models.retrieve("claude-sonnet-4").owned_by == "anthropic"
    with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
        sdk.models.retrieve("nope")


def test_the_openai_sdk_may_send_the_gateway_key_as_a_header(omnigate_gateway: LocalGateway) -> None:
    url = f"{omnigate_gateway.url}/v1"
    headers = {"x-api-key": omnigate_gateway.api_key}
    with openai.OpenAI(base_url=url, api_key="unused", default_headers=headers) as sdk:
        assert sdk.chat.completions.create(model="gpt-4o-mini", messages=HI).object == "chat.completion"
    with openai.OpenAI(base_url=url, api_key="llmg_wrong", max_retries=0) as sdk:
        with pytest.raises(openai.AuthenticationError) as caught:
            sdk.chat.completions.create(model="gpt-4o-mini", messages=HI)
        assert caught.value.response.json() == {"detail": "Invalid API key"}


def test_the_openai_sdk_raises_its_own_errors_for_the_gateways(
    sdk: openai.OpenAI, omnigate_gateway: LocalGateway
) -> None:
    def complete(**fields: Any) -> Any:
        return sdk.chat.completions.create(**{"model": "gpt-4o-mini", "messages": HI} | fields)

    with pytest.raises(openai.BadRequestError, match="role 'tool' not supported"):
        complete(messages=[{"role": "tool", "content": "x", "tool_call_id": "1"}])
    with pytest.raises(openai.UnprocessableEntityError):
        complete(temperature=7)
    omnigate_gateway.script(ProviderFailure(429, "slow down"))
    with pytest.raises(openai.RateLimitError, match="OpenAI error 429: slow down"):
        complete()
    omnigate_gateway.script(ProviderFailure(500, "oops"))
    with pytest.raises(openai.InternalServerError, match="OpenAI error 500: oops"):
        complete()
    omnigate_gateway.script(StreamFailure("provider gone", after_bytes=5))
    with pytest.raises(openai.APIError, match="provider gone"):
        list(complete(stream=True))
    limited = omnigate_gateway.create_project(rate_limit_per_min=1).api_key
    with openai.OpenAI(base_url=sdk.base_url, api_key=limited, max_retries=0) as other:
        other.chat.completions.create(model="gpt-4o-mini", messages=HI)
        with pytest.raises(openai.RateLimitError) as caught:
            other.chat.completions.create(model="gpt-4o-mini", messages=HI)
        assert caught.value.response.json() == {"detail": "Rate limit exceeded"}
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60


@pytest.mark.anyio
async def test_the_async_openai_sdk_gets_a_completion_from_the_gateway(
    omnigate_gateway: LocalGateway,
) -> None:
    url = f"{omnigate_gateway.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=omnigate_gateway.api_key) as sdk:
        completion = await sdk.chat.completions.create(model="gpt-4o-mini", messages=HI)
        assert completion.choices[0].message.content == "echo[gpt-4o-mini]: Say hi in French"
