"""A shared pacer that lives in a Redis: no process of its own, any worker does its work.

The state of each key of the gateway is one value. A worker reads it, does the exchange itself, and writes
it back if nobody has changed it meanwhile; else it does the exchange again with what is there now. One Lua
script does both, so each is atomic:

- The clock is Redis' own, read with the state: no worker's clock matters. If it is set back by more than a
  second (another server has taken over), the state is of no use, and a new pacer begins.
- Each value begins with a random token; the script compares tokens, not values.
- Values expire, and may be lost at any time: a new pacer learns from its workers what it has to know.
"""

from __future__ import annotations

import random
import secrets
import struct
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, Final, Protocol, cast
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel

from omnigate._batch.pace.messages import VERSION, PacerMessageError
from omnigate._runtime.extras import extra
from omnigate._runtime.loops import PerLoop, in_trio
from omnigate._runtime.threads import in_thread
from omnigate._wire.checks import a_type, check_number, check_text, refusal
from omnigate.distributed._shared import exchange_stored, key_of

__all__ = ["RedisClient", "RedisPacer"]

_SCRIPT: Final = """
local value = redis.call('GET', KEYS[1]) or ''
if ARGV[2] ~= '' and string.sub(value, 1, 8) == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return 1
end
local time = redis.call('TIME')
return {time[1], time[2], value}
"""

_HEAD: Final = struct.Struct(">8sd")
"""What a value begins with: its token, and the time of its exchange."""

_EXPIRE_SECONDS: Final = 600
"""Far longer than a window, and than any worker is silent."""

_TRIES_MAX: Final = 20

_PAUSE_SECONDS: Final = 0.004
"""The longest pause after the first conflict, then twice as long ..."""

_PAUSE_MAX_SECONDS: Final = 0.25
"""... up to this."""

_SET_BACK_SECONDS: Final = 1.0

_PREFIX_MAX: Final = 200


class RedisClient(Protocol):
    """What is used of a client of the package `redis`."""

    def eval(self, script: str, numkeys: int, *keys_and_args: Any) -> Any:
        """Run a Lua script."""
        ...


class RedisPacer:
    """A pacer shared through a Redis, for `client.batch(…, pacer=RedisPacer("redis://host:6379"))`.

    Nothing is connected before the first batch; connections are closed with the batch. Can be used by several
    batches, event loops and threads. With a URL it can also be pickled for other processes. Needs the extra
    `redis`, and a Redis of version 5 or later, or one that speaks its protocol.

    Each worker takes some four exchanges of two commands a second. Each carries the whole state, about 40
    bytes for each worker and 30 for each of its models, and all change one value. So this is for up to about
    a hundred workers; beyond that take a `PacerServer`.

    Args:
        redis: a URL ("redis://user:password@host:6379/0", "rediss://…" for TLS, "unix:///path/of/redis.sock");
            or a client of the package `redis`, synchronous (it is called in worker threads) or of
            `redis.asyncio` (for batches in its own event loop only). A client is not closed.
        prefix: what the names of its values in Redis begin with, 1 to 200 characters. Workers with another
            one do not share the limit.
        timeout_seconds: for one exchange, connecting included, 0.01 to 60. The batch goes on meanwhile.

    Raises:
        InvalidArgumentError: an argument is out of range or of another type.
        ImportError: the extra `redis` is not installed.

    """

    def __init__(
        self,
        redis: str | RedisClient,
        *,
        prefix: str = "omnigate:pacer",
        timeout_seconds: float = 1.5,
    ) -> None:
        with extra("redis", "RedisPacer"):
            package: Any = import_module("redis")
            asyncio_package: Any = import_module("redis.asyncio")
        self._errors: Any = package.exceptions
        self._timeout = check_number(timeout_seconds, "timeout_seconds", minimum=0.01, maximum=60)
        self._prefix = check_text(prefix, "prefix", maximum=_PREFIX_MAX)
        self._url = redis if isinstance(redis, str) else None
        self._async: Callable[[], Any] | None = None
        self._sync: Any = None
        self._clients: PerLoop[Any] = PerLoop(lambda _: self._open(asyncio_package.Redis))
        given = cast("Any", redis)
        if self._url is not None:
            self._shown = _without_password(self._url)
            try:
                package.ConnectionPool.from_url(self._url)
            except ValueError as error:
                must = "be a URL that begins with redis://, rediss:// or unix://, or a client"
                raise refusal("redis", redis, must, secret=True) from error
            self._async = self._clients.current
            self._sync = self._open(package.Redis)
        elif isinstance(given, asyncio_package.Redis | asyncio_package.RedisCluster):
            self._shown = "a client of redis.asyncio"
            self._async = lambda: given
        elif isinstance(given, package.Redis | package.RedisCluster):
            self._shown = "a client"
            self._sync = given
        else:
            must = "be a URL, or a client of the package redis"
            raise refusal("redis", redis, must, is_type=True, got=a_type(given))
        if self._url is None and given.get_encoder().decode_responses:
            raise refusal("redis", redis, "be without decode_responses=True", got="a client with it")

    async def exchange(self, report: bytes) -> bytes:
        """Do one exchange with the pacer, and return the grant that answers the report.

        Raises:
            OSError: Redis cannot be reached, refuses (`PermissionError` if the password or its rights are the
                reason), or does not answer in time.

        """
        name = f"{self._prefix}:v{VERSION}:{key_of(report).hex()}"
        errors = self._errors
        try:
            with anyio.fail_after(self._timeout):
                return await self._exchange(name, report)
        except (TimeoutError, errors.TimeoutError) as error:
            words = f"the pacer in Redis ({self._shown}) has not answered in {self._timeout} s"
            raise TimeoutError(words) from error
        except (errors.RedisError, OSError) as error:
            refusals = errors.AuthenticationError, errors.NoPermissionError
            # redis.asyncio wraps the former in a ConnectionError.
            is_refused = isinstance(error, refusals) or isinstance(error.__cause__, refusals)
            kind = PermissionError if is_refused else ConnectionError
            raise kind(f"the pacer in Redis ({self._shown}) cannot be used: {error}") from None

    async def aclose(self) -> None:
        """Close connections that are not in use, but not those of a client that was given."""
        if self._url is not None:
            if in_trio():
                self._sync.connection_pool.disconnect(inuse_connections=False)
            else:
                await self._clients.current().connection_pool.disconnect(inuse_connections=False)
        await anyio.lowlevel.checkpoint()

    async def _exchange(self, name: str, report: bytes) -> bytes:
        for number in range(_TRIES_MAX):
            reply = await self._eval(name, b"", b"")  # after a pause, what was read before it is old
            for _ in range(2):
                now = int(reply[0]) + int(reply[1]) / 1e6
                token, state, grant = _answer(reply[2], report, now)
                mine = _HEAD.pack(secrets.token_bytes(8), now)
                reply = await self._eval(name, token, mine + state)
                if reply == 1:
                    return grant
            pause = min(_PAUSE_MAX_SECONDS, _PAUSE_SECONDS * 2**number)
            await anyio.sleep(random.uniform(0, pause))  # noqa: S311 - no secret
        raise ConnectionError("too many workers use it at the same time")

    async def _eval(self, name: str, token: bytes, value: bytes) -> Any:
        arguments = (_SCRIPT, 1, name, token, value, _EXPIRE_SECONDS * 1_000)
        if self._async is not None and not in_trio():
            return await self._async().eval(*arguments)
        if self._sync is None:
            raise ConnectionError("a client of redis.asyncio needs asyncio: pass its URL")
        return await in_thread(self._sync.eval, *arguments)

    def _open(self, kind: Any) -> Any:
        """Return a client that connects when it is used, and does not try again: the batch does."""
        is_async = kind.__module__.startswith("redis.asyncio")
        retry = import_module("redis.asyncio.retry" if is_async else "redis.retry")
        return kind.from_url(
            self._url,
            socket_timeout=self._timeout,
            socket_connect_timeout=self._timeout,
            retry=retry.Retry(import_module("redis.backoff").NoBackoff(), 0),
            decode_responses=False,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        if self._url is None:
            raise TypeError("a RedisPacer with a client cannot be pickled: make it of a URL")
        make = partial(RedisPacer, prefix=self._prefix, timeout_seconds=self._timeout)
        return make, (self._url,)

    def __repr__(self) -> str:
        return f"<RedisPacer {self._shown}, {self._prefix!r}>"


def _answer(value: bytes, report: bytes, now: float) -> tuple[bytes, bytes, bytes]:
    """Return the token of what Redis holds, the state to replace it with, and the grant."""
    token, state = b"", None
    if value:
        token = value[:8]
        if len(value) > _HEAD.size and _HEAD.unpack_from(value)[1] <= now + _SET_BACK_SECONDS:
            state = value[_HEAD.size :]
    try:
        return (token, *exchange_stored(state, report, now))
    except PacerMessageError:  # what Redis holds is damaged
        return (token, *exchange_stored(None, report, now))


def _without_password(url: str) -> str:
    """Return a URL without its user, password and options."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "***"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
