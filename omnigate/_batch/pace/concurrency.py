"""Adaptive concurrency: find a provider's capacity from the latencies of its responses.

Sans-I/O: no clock, no waiting; results of calls go in, a limit comes out. The rules:

1. By Little's law, throughput is the limit divided by the mean latency. So raising the limit by a factor
   raises throughput as long as latency grows by less than that factor. A level is worth it if it gains at
   least half of the possible: if the logarithm of the latency grows by less than half of the logarithm of the
   limit.
2. Latencies differ from call to call by a factor of ten. Compare like with like: the typical latency at one
   limit with that at another, measured one after the other, until the difference stands out from the noise
   (or both have enough samples). The first round after a change is ignored, since its early finishers are the
   short calls.
3. Only calls sent while the limit is used up say anything about it. If something else holds the sends back,
   the limit stays.
4. From a low start, double the limit until a level is not worth it. Load makes short calls longer, too: as
   long as one of the quartiles has not risen, only the mix of calls has changed. Then bisect between the
   highest level that was worth it and the lowest that was not, until they are close.
5. After that hold the limit, and try a step up and a step down in turn, less often after each fruitless try.
   If latencies climb while the limit is held, step down immediately, and further.
6. On overload, cut immediately by twice the number of failed calls, but by at most half per episode; failures
   of calls sent before the cut belong to that episode. When failures stop, raise the limit again, twice as
   far in each round, and resume what was interrupted. If more than a twentieth of all calls fail, the level
   counts as not worth it, and the limit returns to seven tenths of it.
7. Trouble that lasts must not freeze the limit where it drove it: after ten seconds without a failure, the
   limit returns to where the first such cut put it, twice as far in each round.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Final, Literal, NamedTuple

__all__ = ["AdaptiveConcurrency"]

_INITIAL: Final = 8

_MAXIMUM: Final = 1_024

_WORTH: Final = 0.5  # the part of the possible gain in throughput that a level must bring

_LATENCY_MIN: Final = 0.1  # seconds; below this, latency is the client's own work, not a provider's queue

_CONFIDENCE: Final = 1.65  # standard errors: one wrong verdict in twenty

_CONFIDENCE_FIRST: Final = 3.0  # for the verdict that ends the doubling

_DRIFT: Final = 0.5  # standard errors of a change over time that explains a verdict

_BLOCK: Final = 24  # the smallest number of latencies judged together

_SAMPLES_MAX: Final = 1_500  # after this many the likelier verdict is taken

_LATEST: Final = 256  # latencies that are kept for their quartiles

_NOISE_MIN: Final = 0.005  # relative noise of a mean that no sampling removes: clocks, rounding

_USED: Final = 0.8  # a call sent with this part of the limit in flight counts as a sample

_STEP: Final = 1.07  # the ratio of two neighbouring levels, where noise allows telling them apart

_STEP_MAX: Final = 1.13

_STEP_FAR: Final = 1.1  # if noise makes steps larger than this, steps up are doubled, to be judged in time

_STEPS_DOWN_MAX: Final = 4  # steps taken together, after steps down that helped

_GROWTH: Final = 2.0  # the ratio of a level to the next while none is known to be bad

_REGROWTH: Final = 1.15  # the same once one was; squared with each success

_CLIMB: Final = 0.25  # of the logarithm of the latency, while a level is held

_CLIMB_STEP: Final = 1.4

_HOLD_MAX: Final = 8  # how many times longer a level is held than another is tried

_SEVERE: Final = 0.05  # share of failing calls that shows the level is too high; fewer may have other causes

_FAILURE_WEIGHT: Final = 0.01  # weight of one call in the moving average of failures

_SEVERE_CUT: Final = 0.7

_QUIET_SECONDS: Final = 10.0


class _Samples:
    """Mean and variance of the latencies' square roots (Welford's recurrence).

    Little's law is about the mean itself, but a few very long calls make it useless; the mean logarithm
    barely shows that one call in sixteen is queued. The square root is between the two.
    """

    __slots__ = ("count", "latest", "mean", "squares")

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0
        self.latest: deque[float] = deque(maxlen=_LATEST)

    def values(self) -> list[Any]:
        return [self.count, self.mean, self.squares, list(self.latest)]

    @classmethod
    def of(cls, values: list[Any]) -> _Samples:
        samples = cls()
        samples.count, samples.mean, samples.squares, latest = values
        samples.latest.extend(latest)
        return samples

    def add(self, latency: float) -> None:
        self.latest.append(latency)
        value = math.sqrt(latency)
        self.count += 1
        difference = value - self.mean
        self.mean += difference / self.count
        self.squares += difference * (value - self.mean)

    def merge(self, other: _Samples) -> None:
        """Merge other, later samples (Chan, Golub and LeVeque, 1979)."""
        self.latest.extend(other.latest)
        if not other.count:
            return
        count = self.count + other.count
        difference = other.mean - self.mean
        self.mean += difference * other.count / count
        self.squares += other.squares + difference**2 * self.count * other.count / count
        self.count = count

    def logarithm(self) -> float:
        """Return the logarithm of the typical latency."""
        return 2 * math.log(self.mean)

    def variance(self) -> float:
        """Return the variance of one latency, relative to the typical one."""
        return 4 * self.squares / (self.count - 1) / self.mean**2 if self.count > 1 else math.inf

    def quartiles(self) -> list[float]:
        """Return the quartiles of the latest latencies; there must be some."""
        ranked = sorted(self.latest)
        return [ranked[len(ranked) * quarter // 4] for quarter in (1, 2, 3)]

    def variance_of_mean(self) -> float:
        return self.variance() / max(1, self.count) + _NOISE_MIN**2


class _Doubt(NamedTuple):
    """A level that was not worth it, unless calls are still as slow at the level before.

    Attributes:
        tried: the level.
        bad: the lowest level known not to be worth it, before.
        growth: how far the next step would have gone.
        before: the logarithm of the typical latency at the level before.
        during: the same on trial.
    """

    tried: int
    bad: int | None
    growth: float
    before: float
    during: float


class AdaptiveConcurrency:
    """Finds the number of calls in flight beyond which throughput stops growing.

    The signal is rising latency, as in TCP Vegas (Brakmo and Peterson, 1994); the search is that of
    BIC-TCP (Xu, Harfoush and Rhee, 2004): growth, then halving between the highest level known to be good and
    the lowest known not to be, then careful steps; the target is the knee that maximizes Kleinrock's
    power (1979); overload causes a multiplicative decrease (Chiu and Jain, 1989).

    Times are seconds of any monotonic clock.

    Attributes:
        limit: how many calls may be in flight.

    Args:
        initial: the first limit.
        minimum: lower bound of the limit, at least 1.
        maximum: upper bound of the limit.

    """

    def __init__(self, *, initial: int = _INITIAL, minimum: int = 1, maximum: int = _MAXIMUM) -> None:
        self._minimum = max(1, minimum)
        self._maximum = max(self._minimum, maximum)
        self.limit: int = min(max(initial, self._minimum), self._maximum)
        self._good = self.limit  # the highest level that was worth it
        self._bad: int | None = None  # the lowest that was not
        self._base = _Samples()  # at `_good`
        self._recent = _Samples()  # at `limit`
        self._try: Literal["hold", "up", "down", "recover"] = "hold"
        self._next: Literal["up", "down"] = "up"
        self._has_climbed = False  # whether latencies rose at the level that is held
        self._doubt: _Doubt | None = None
        self._steps_down = 1  # taken together
        self._growth = _GROWTH
        self._skip = self.limit  # samples to ignore, sent before the last change
        self._hold = 1  # see `_HOLD_MAX`
        self._failure_rate = 0.0
        self._failures = 0  # in the current episode of overload ...
        self._is_severe = False
        self._level = self.limit  # the limit before the cuts, and what was being done at it
        self._resume: Literal["hold", "up", "down"] = "hold"
        self._cut_at = -math.inf  # ... which began then ...
        self._cut_from = 0  # ... at that limit
        self._successes = 0  # sent since then, at the current limit
        self._failed_at = -math.inf
        self._before = 0  # the limit to return to when trouble ends; 0: no trouble

    def values(self) -> dict[str, Any]:
        """Return all that is known as plain values, for `of`."""
        values = dict(vars(self))
        values["_base"], values["_recent"] = self._base.values(), self._recent.values()
        return values

    @classmethod
    def of(cls, values: dict[str, Any]) -> AdaptiveConcurrency:
        """Return the limit that `values` have described."""
        concurrency = cls()
        known = {name: values[name] for name in vars(concurrency)}
        known["_base"], known["_recent"] = _Samples.of(known["_base"]), _Samples.of(known["_recent"])
        if known["_doubt"] is not None:
            known["_doubt"] = _Doubt(*known["_doubt"])
        vars(concurrency).update(known)
        return concurrency

    def succeeded(self, now: float, latency: float, in_flight: int) -> None:
        """Record a call that got a response.

        Args:
            now: the current time in seconds.
            latency: seconds from send to response.
            in_flight: how many calls were in flight when it was sent, itself included.

        """
        self._failure_rate *= 1 - _FAILURE_WEIGHT
        if now - latency > self._cut_at:
            self._successes += 1
            if self._try == "recover":
                self._recover()
            elif self._before and now - self._failed_at >= _QUIET_SECONDS:
                self._return(self._before)
        if self._try == "recover" or in_flight < math.floor(self.limit * _USED):
            return
        if self._skip > 0:
            self._skip -= 1
            return
        self._recent.add(max(latency, _LATENCY_MIN))
        if self._try == "hold":
            if self._recent.count >= self._block():
                self._leave_or_stay()
        elif self._recent.count >= self._block():
            self._judge()

    def overloaded(self, now: float, sent_at: float) -> None:
        """Record a call that failed from overload: 500, 502, 503, a timeout, a provider's 429.

        Args:
            now: the current time in seconds.
            sent_at: when it was sent.

        """
        self._failure_rate += _FAILURE_WEIGHT * (1 - self._failure_rate)
        self._failed_at = now
        if sent_at > self._cut_at and now - self._cut_at >= self._typical_latency():
            if self._successes or not self._failures:  # else the outage goes on
                self._is_severe = False
                if self._try != "recover":
                    self._level, self._resume = self.limit, self._try
            self._cut_at, self._cut_from, self._failures, self._successes = now, self.limit, 0, 0
        elif self._try != "recover":
            return  # a late failure of a past episode
        self._failures += 1
        if self._failure_rate > _SEVERE and not self._is_severe:
            self._is_severe, self._failure_rate = True, 0.0
            self._growth, self._hold, self._skip = _REGROWTH, 1, 0
            self._good = max(self._minimum, min(self._good, math.floor(self._level * _SEVERE_CUT)))
            self._bad = max(self._level, self._good + 1)
            self._before = self._before or self._good
            self._level, self._resume = self._good, "hold"
            self._base, self._recent = _Samples(), _Samples()
        self._try = "recover"
        cut = max(1, min(2 * self._failures, self._cut_from // 2))
        self.limit = max(self._minimum, min(self.limit, self._cut_from - cut))

    def forgive(self) -> None:
        """Undo the cuts: the failures had another cause."""
        level = max(self._level, self._before) if self._try == "recover" or self._before else self.limit
        self._failure_rate, self._failures, self._is_severe = 0.0, 0, False
        self._before, self._bad, self._growth, self._hold = 0, None, _GROWTH, 1
        if level > self.limit:
            self._start_hold(level)

    def _return(self, level: int) -> None:
        """Raise the limit to where trouble began, round by round."""
        self._before = 0
        if level <= self.limit:
            return
        self._good, self._bad, self._hold = level, None, 1
        self._base, self._recent = _Samples(), _Samples()
        self._level, self._resume, self._try = level, "hold", "recover"
        self._failures, self._successes = 0, 0

    def _typical_latency(self) -> float:
        samples = self._base if self._base.count else self._recent
        return samples.mean**2

    def _recover(self) -> None:
        """Raise the limit again, twice as far with each good round, then resume what was interrupted."""
        level = self._level
        if self._successes < min(self.limit, 8 * max(1, level - self.limit)):
            return
        self._successes = 0
        if self.limit * 2 < level:
            self.limit *= 2
        else:
            self._skip += abs(level - self.limit)
            self.limit, self._try = level, self._resume

    def __repr__(self) -> str:
        return f"<AdaptiveConcurrency limit={self.limit} good={self._good} bad={self._bad} {self._try}>"

    def _block(self) -> int:
        return max(_BLOCK, self.limit)

    def _move(self, limit: int) -> None:
        self._skip = max(self.limit, limit)
        self.limit = limit
        self._recent = _Samples()

    def _start_hold(self, level: int) -> None:
        self._try = "hold"
        self._good = level
        self._base = _Samples()
        self._has_climbed = False
        self._move(level)

    def _start_try(self, step: Literal["up", "down"], level: int) -> None:
        self._try = step
        self._move(level)

    def _leave_or_stay(self) -> None:
        """Judge another block of latencies at the level that is held."""
        recent, base, level = self._recent, self._base, self.limit
        self._recent = _Samples()
        if self._has_climbed:  # this block is unbiased: it was not selected for being slow
            self._has_climbed = False
            self._base, self._bad, self._hold = recent, None, 1
            self._start_try("down", max(self._minimum, math.floor(level / _CLIMB_STEP)))
            return
        doubt, self._doubt = self._doubt, None
        if doubt is not None and self._is_drift(doubt, recent):
            self._bad, self._growth, self._hold = doubt.bad, doubt.growth, 1
            self._start_hold(doubt.tried)
            return
        if base.count and level > self._minimum:
            noise = math.sqrt(base.variance_of_mean() + recent.variance_of_mean())
            if recent.logarithm() - base.logarithm() > _CLIMB + 2 * noise:
                self._has_climbed = True
                return
        base.merge(recent)
        step = self._step()
        is_settled = self._bad is not None and self._bad <= max(level + 1, level * step)
        above = self._above(step, is_settled)
        below = max(self._minimum, min(level - 1, round(level / step**self._steps_down)))
        if not is_settled and above > level:
            if self._bad is None or base.count >= self._samples_for(above / level):
                self._start_try("up", above)
        elif base.count >= self._hold * max(self._block(), self._samples_for(step)):
            if above > level and (self._next == "up" or below == level):
                self._start_try("up", above)
            elif below < level:
                self._start_try("down", below)

    def _is_drift(self, doubt: _Doubt, after: _Samples) -> bool:
        """Return whether a level on trial was slower only because all calls become slower."""
        drift = after.logarithm() - doubt.before
        if drift < _DRIFT * math.sqrt(2 * after.variance_of_mean()):
            return False
        excess = doubt.during - (doubt.before + drift / 2)
        return excess < _WORTH * math.log(doubt.tried / self._good)

    def _step(self) -> float:
        """Return the ratio of two levels that can be told apart within `_SAMPLES_MAX` latencies."""
        step = math.exp(_CONFIDENCE / _WORTH * math.sqrt(2 * self._base.variance() / _SAMPLES_MAX))
        return min(_STEP_MAX, max(_STEP, step))

    def _samples_for(self, ratio: float) -> float:
        """Return how many latencies it takes to tell two levels of this ratio apart."""
        samples = 2 * self._base.variance() * (_CONFIDENCE / (_WORTH * math.log(ratio))) ** 2
        return min(_SAMPLES_MAX, samples)

    def _above(self, step: float, is_settled: bool) -> int:
        """Return the next level to try above the one held, or the same at the maximum."""
        level, bad = self._good, self._bad
        if bad is None:
            above = max(level + 1, round(level * self._growth))
        elif is_settled:
            far = step**2 if step > _STEP_FAR else step
            above = max(level + 1, round(level * far))  # was bad before, but that may change
        else:
            above = max(level + 1, min(round(math.sqrt(level * bad)), bad - 1))
        return min(above, self._maximum)

    def _rise_of_all(self) -> float:
        """Return by how much all latencies have risen, short and long: the logarithm of a ratio."""
        return min(
            math.log(after / before)
            for before, after in zip(self._base.quartiles(), self._recent.quartiles(), strict=True)
        )

    def _judge(self) -> None:
        """Compare the level on trial with the good one, once the difference is clear."""
        recent, base, tried, good = self._recent, self._base, self.limit, self._good
        if recent.count % max(1, _BLOCK // 2):
            return  # each look adds a chance of a wrong verdict
        lower, higher = (base, recent) if tried > good else (recent, base)
        excess = higher.logarithm() - lower.logarithm() - _WORTH * abs(math.log(tried / good))
        if self._bad is None and tried > good:
            excess = min(excess, self._rise_of_all() - _WORTH * math.log(tried / good))
        noise = math.sqrt(base.variance_of_mean() + recent.variance_of_mean())
        was_known = self._bad is not None and max(tried, good) >= self._bad
        is_higher_worth = excess < 0
        is_first = self._bad is None and excess > 0  # a wrong verdict here would cost much time
        if abs(excess) < (_CONFIDENCE_FIRST if is_first else _CONFIDENCE) * noise:
            enough = max(self._block(), base.count // 2) if was_known else max(_SAMPLES_MAX, tried)
            is_likely = self._bad is None and tried > good and excess < 0  # growing is cheap to undo
            if not is_likely and recent.count < min(enough, max(_SAMPLES_MAX, tried)):
                return
            is_higher_worth = is_higher_worth and not was_known
        if tried > good:
            self._next = "down"
            if not is_higher_worth:
                self._doubt = _Doubt(tried, self._bad, self._growth, base.logarithm(), recent.logarithm())
                self._bad, self._growth = tried, _REGROWTH
            elif was_known:
                self._bad = None
        elif is_higher_worth:
            self._next = "up" if self._steps_down == 1 else "down"
            self._steps_down = 1
            was_known = True
        else:
            self._bad = good
            self._steps_down = min(_STEPS_DOWN_MAX, self._steps_down * 2)
        if (tried > good) == is_higher_worth:
            self._hold = 1
            if tried > good and self._bad is None and tried < self._maximum:  # go on without a break
                self._good = tried
                base.merge(recent)  # on its own it would be biased: it was selected for being fast
                self._growth = min(_GROWTH, self._growth**2)
                self._start_try("up", self._above(_STEP, False))
            else:
                self._start_hold(tried)
        else:
            if was_known:
                self._hold = min(_HOLD_MAX, self._hold * 2)
            self._start_hold(good)
