"""Python client for the OmniGate LLM gateway: one async core for trio, asyncio and plain scripts.

from omnigate import Client

with Client(api_key="llmg_…", base_url="https://gateway.example") as client:
    print(client.chat(model="gpt-4o-mini", messages="Hello!").content)
"""

from omnigate import _homes
from omnigate._batch.batch import Batch
from omnigate._batch.estimate import Estimate
from omnigate._batch.journal.journal import JournalWarning
from omnigate._batch.journal.merging import JournalConflict, JournalMerge, merge_journals
from omnigate._batch.journal.reading import failed, read_journal
from omnigate._batch.journal.recovery import JournalRecovery, recover_journal
from omnigate._batch.options import BatchSettings
from omnigate._batch.outcomes import AnyOutcome as Outcome
from omnigate._batch.outcomes import BatchStats
from omnigate._batch.writing import write_outcomes
from omnigate._calls.configuration import PlaintextKeyWarning
from omnigate._calls.retry import RetryConfig
from omnigate._limits import Budget, RateLimit
from omnigate._streams.chat import ChatStream, CompletionStream
from omnigate._sync.batch import SyncBatch
from omnigate._sync.streams import SyncChatStream, SyncCompletionStream
from omnigate._transport.anyio_transport import AnyIOTransport
from omnigate._version import __version__
from omnigate._wire.head import Meta
from omnigate._wire.options import CallOptions, ChatDefaults, ChatStreamOptions, SamplingOptions
from omnigate._wire.results import DictResult, ListResult
from omnigate.admin import AdminClient, AsyncAdminClient
from omnigate.async_client import AsyncClient
from omnigate.client import Client
from omnigate.exceptions import (
    APIError,
    AuthError,
    BatchLimitError,
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
    MaxWaitError,
    NotStartedError,
    ProviderError,
    ProviderRateLimitError,
    RaceError,
    RateLimitError,
    ResponseFormatError,
    StreamClosedError,
    TimeoutError,
    TooManyFailuresError,
    classify,
)
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
    "BatchLimitError",
    "BatchSettings",
    "BatchStats",
    "Budget",
    "BudgetExceededError",
    "CallOptions",
    "ChatDefaults",
    "ChatRequest",
    "ChatResponse",
    "ChatStream",
    "ChatStreamOptions",
    "Client",
    "ClientClosedError",
    "CompletionStream",
    "ConnectionError",
    "DictResult",
    "Estimate",
    "ForkedClientError",
    "GatewayConnectionError",
    "GatewayError",
    "InvalidArgumentError",
    "InvalidArgumentTypeError",
    "InvalidResponseError",
    "JournalConflict",
    "JournalError",
    "JournalMerge",
    "JournalRecovery",
    "JournalWarning",
    "ListResult",
    "MaxWaitError",
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
    "ResponseFormatError",
    "RetryConfig",
    "SamplingOptions",
    "SignupResponse",
    "StreamChunk",
    "StreamClosedError",
    "SyncBatch",
    "SyncChatStream",
    "SyncCompletionStream",
    "TimeoutError",
    "TooManyFailuresError",
    "Usage",
    "__version__",
    "classify",
    "failed",
    "merge_journals",
    "read_journal",
    "recover_journal",
    "write_outcomes",
]


def __dir__() -> list[str]:
    return sorted([*__all__, "exceptions", "models"])


_homes.settle(__name__, {name: globals()[name] for name in __all__})
