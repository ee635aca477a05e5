"""Python client for the OmniGate LLM gateway: one async core for trio, asyncio and plain scripts.

from omnigate import Client

with Client(api_key="llmg_…", base_url="https://gateway.example") as client:
print(client.chat(model="gpt-4o-mini", messages="Hello!").content)
"""

from omnigate._version import __version__
from omnigate.arguments import CallOptions
from omnigate.async_admin import AsyncAdminClient
from omnigate.async_client import AsyncClient
from omnigate.batch import Batch
from omnigate.client import AdminClient, Client, SyncChatStream, SyncCompletionStream
from omnigate.exceptions import (
    APIError,
    AuthError,
    BudgetExceededError,
    ClientClosedError,
    ConnectionError,
    ForkedClientError,
    GatewayConnectionError,
    GatewayError,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    InvalidResponseError,
    JournalError,
    NotStartedError,
    ProviderError,
    ProviderRateLimitError,
    RaceError,
    RateLimitError,
    StreamClosedError,
    TimeoutError,
    classify,
)
from omnigate.journal import JournalWarning
from omnigate.meta import Budget, DictResult, ListResult, Meta, RateLimit
from omnigate.models import (
    ApiKeyCreated,
    ApiKeyInfo,
    ChatRequest,
    ChatResponse,
    MeResponse,
    Message,
    MetricsBreakdown,
    MetricsResponse,
    MetricsTimePoint,
    MetricsTotals,
    ModelInfo,
    ModelPricing,
    OrgInfo,
    ProjectCreated,
    ProjectInfo,
    SignupResponse,
    StreamChunk,
    Usage,
)
from omnigate.outcome import BatchStats, Outcome
from omnigate.plaintext import PlaintextKeyWarning
from omnigate.retry import RetryConfig
from omnigate.streaming import ChatStream, CompletionStream
from omnigate.sync_batch import SyncBatch
from omnigate.transport.anyio_transport import AnyIOTransport

__all__ = [
    "APIError",
    "AdminClient",
    "AnyIOTransport",
    "ApiKeyCreated",
    "ApiKeyInfo",
    "AsyncAdminClient",
    "AsyncClient",
    "AuthError",
    "Batch",
    "BatchStats",
    "Budget",
    "BudgetExceededError",
    "CallOptions",
    "ChatRequest",
    "ChatResponse",
    "ChatStream",
    "Client",
    "ClientClosedError",
    "CompletionStream",
    "ConnectionError",
    "DictResult",
    "ForkedClientError",
    "GatewayConnectionError",
    "GatewayError",
    "InvalidArgumentError",
    "InvalidArgumentTypeError",
    "InvalidResponseError",
    "JournalError",
    "JournalWarning",
    "ListResult",
    "MeResponse",
    "Message",
    "Meta",
    "MetricsBreakdown",
    "MetricsResponse",
    "MetricsTimePoint",
    "MetricsTotals",
    "ModelInfo",
    "ModelPricing",
    "NotStartedError",
    "OrgInfo",
    "Outcome",
    "PlaintextKeyWarning",
    "ProjectCreated",
    "ProjectInfo",
    "ProviderError",
    "ProviderRateLimitError",
    "RaceError",
    "RateLimit",
    "RateLimitError",
    "RetryConfig",
    "SignupResponse",
    "StreamChunk",
    "StreamClosedError",
    "SyncBatch",
    "SyncChatStream",
    "SyncCompletionStream",
    "TimeoutError",
    "Usage",
    "__version__",
    "classify",
]
