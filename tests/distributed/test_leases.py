"""The shared pacer on its own: what it grants for which reports."""

import random
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigate._batch.pace.messages import (
    COUNT_MAX,
    HEADS_MAX,
    MESSAGE_BYTES_MAX,
    UNLIMITED,
    VERSION,
    Grant,
    Head,
    ModelReport,
    Report,
    decode_grant,
    decode_report,
    encode,
    key_digest,
)
from omnigate.distributed import PacerMessageError, SharedPacer, exchange_stored, key_of
from omnigate.distributed._key_state import KeyState
from omnigate.distributed._leases import Leases

KEY = b"some digest"


def low(low: float, high: float) -> float:
    return low


class Talk:
    """Workers that talk to one pacer; each report names the epoch and the lease it has heard last."""

    def __init__(self) -> None:
        self.leases = Leases(KeyState.new(1_000.0), low)
        self.now = 1_000.0
        self.last: dict[str, Grant] = {}

    def tell(self, worker: str, *, wants: int = 0, heads: list[Head] | None = None, **more: Any) -> Grant:
        last = self.last.get(worker)
        known = {"epoch": last.epoch, "lease": last.lease} if last else {}
        told = {**known, "want": wants, "is_hungry": wants > 0, "heads": heads or [], **more}
        grant = self.leases.exchange(Report(VERSION, KEY, worker, **told), self.now)
        self.last[worker] = grant
        return grant

    def head(self, counted: int, *, limit: int = 60, left: int = 40) -> Head:
        """Return an answer that says when the window ends, as of now."""
        return Head(self.now - 0.1, self.now, limit, counted, left)

    def learn(self, worker: str = "a", *, limit: int = 60, left: int = 40) -> None:
        """Let one worker make the first call."""
        assert self.tell(worker, wants=8).sends == 1
        self.tell(worker, heads=[self.head(1, limit=limit, left=left)])

    def drain(self, *workers: str, wants: int = 1_000) -> dict[str, int]:
        """Let workers ask in turn until nothing is left; return how many each was granted."""
        granted = dict.fromkeys(workers, 0)
        for _ in range(1_000):
            sends = {worker: self.tell(worker, wants=wants).sends for worker in workers}
            for worker in workers:
                granted[worker] += sends[worker]
            if not any(sends.values()):
                return granted
            self.now += 0.01
        raise AssertionError("it does not end")

    def next_window(self) -> None:
        self.now += self.last[next(iter(self.last))].window_seconds + 0.001


def test_one_call_of_one_worker_learns_the_limit_for_all() -> None:
    talk = Talk()
    assert [talk.tell(worker, wants=8).sends for worker in "abc"] == [1, 0, 0]
    talk.now += 2
    assert talk.tell("b", wants=8).sends == 0
    assert talk.tell("a", wants=8, in_flight=1).sends == 0
    assert talk.tell("a", wants=8, heads=[talk.head(1)]).limit == 60
    assert talk.tell("b", wants=8).sends > 0


def test_a_first_call_that_tells_nothing_is_followed_by_another() -> None:
    talk = Talk()
    assert talk.tell("a", wants=8).sends == 1
    assert talk.tell("b", wants=8).sends == 0
    assert talk.tell("a", in_flight=0).sends == 0
    assert talk.tell("b", wants=8).sends == 1


def test_a_worker_that_dies_with_the_first_call_is_replaced() -> None:
    talk = Talk()
    assert talk.tell("a", wants=8).sends == 1
    talk.now += 10
    assert talk.tell("b", wants=8).sends == 1


def test_a_first_lease_that_was_not_received_is_granted_again() -> None:
    talk = Talk()
    assert talk.tell("a", wants=8).sends == 1
    assert talk.tell("a", wants=8, epoch=0, lease=0).sends == 1


def test_a_success_without_headers_frees_all() -> None:
    talk = Talk()
    talk.tell("a", wants=8)
    assert talk.tell("a", is_free=True).sends == UNLIMITED
    assert talk.tell("b", wants=8).sends == UNLIMITED
    talk.tell("a", heads=[talk.head(1)])
    assert talk.tell("b", wants=8).sends != UNLIMITED


@pytest.mark.parametrize("limit", [1, 7, 60, 601])
@pytest.mark.parametrize("workers", ["a", "ab", "abcdefg"])
def test_all_leases_of_a_window_are_as_many_as_its_limit_and_equal(workers: str, limit: int) -> None:
    talk = Talk()
    talk.learn(limit=limit)
    granted = talk.drain(*workers)
    assert sum(granted.values()) == limit - 1
    talk.next_window()
    granted = talk.drain(*workers)
    assert sum(granted.values()) == limit
    assert max(granted.values()) - min(granted.values()) <= 1


def test_a_worker_that_wants_less_gets_it_and_the_others_the_rest() -> None:
    talk = Talk()
    talk.learn()
    talk.next_window()
    wants = 5
    while wants:
        sends = talk.tell("c", wants=wants, is_hungry=False).sends
        assert sends > 0
        wants -= sends
    granted = talk.drain("a", "b")
    assert granted == {"a": 28, "b": 27} or granted == {"a": 27, "b": 28}


def test_a_worker_that_does_not_report_is_left_out_a_little_later() -> None:
    talk = Talk()
    talk.learn()
    talk.tell("b", wants=100)
    talk.next_window()
    talk.tell("b", wants=100)
    assert sum(talk.drain("a").values()) <= 31  # b may come at any moment
    talk.now += 10
    assert talk.leases.state.used + sum(talk.drain("a").values()) >= 60


def test_what_is_given_back_is_leased_again() -> None:
    talk = Talk()
    talk.learn()
    before = sum(talk.drain("a").values())
    assert before == 59
    assert talk.tell("a", wants=0, returned=10).sends == 0
    assert sum(talk.drain("b").values()) == 10


def test_no_more_is_given_back_than_was_leased() -> None:
    talk = Talk()
    talk.learn()
    talk.tell("a", returned=COUNT_MAX)
    assert talk.leases.state.used >= 0
    assert sum(talk.drain("b").values()) <= 60


def test_a_lease_that_was_not_received_is_leased_again() -> None:
    talk = Talk()
    talk.learn()
    before = talk.last["a"].lease
    lost = talk.tell("a", wants=8).sends
    assert lost > 0
    assert talk.tell("a", wants=0, lease=before).sends == 0
    assert sum(talk.drain("a", "b").values()) == 59


def test_what_was_sent_without_a_lease_counts() -> None:
    talk = Talk()
    talk.learn()
    talk.tell("a", unleased=20)
    assert sum(talk.drain("a", "b").values()) == 39


def test_a_lease_ends_before_its_window_may_and_none_begins_before_it_has() -> None:
    talk = Talk()
    talk.learn(left=40)  # sent at 999.9, so the window ends between 1,038.9 and 1,040
    assert talk.tell("a", wants=1).valid_seconds == pytest.approx(38.9 - 0.25, abs=0.01)
    for now, sends in ((1_038.6, 1), (1_038.7, 0), (1_039.9, 0), (1_040.01, 1)):
        talk.now = now
        assert talk.tell("a", wants=1).sends == sends


def test_a_rejection_closes_the_gate_for_all() -> None:
    talk = Talk()
    talk.learn()
    talk.tell("a", closed_seconds=12.0)
    grant = talk.tell("b", wants=8)
    assert grant.sends == 0
    assert grant.closed_seconds == pytest.approx(12.0)
    talk.now += 12.1
    assert talk.tell("b", wants=8).sends > 0


def test_what_others_have_used_is_not_leased_out() -> None:
    talk = Talk()
    talk.learn()
    talk.now += 1
    talk.tell("a", heads=[talk.head(31, left=39)])
    assert sum(talk.drain("a").values()) == 29


def test_others_that_were_seen_twice_are_left_room_for_but_not_the_last_third() -> None:
    talk = Talk()
    talk.learn(left=40)
    for others in (59, 59):
        talk.next_window()
        talk.tell("a", heads=[talk.head(others, left=59)])
    talk.next_window()
    granted = 0
    for _ in range(200):
        granted += talk.tell("a", wants=100).sends
        talk.now += 0.28
    assert granted == 20
    for _ in range(2):
        talk.next_window()
        talk.tell("a")
    talk.next_window()
    assert sum(talk.drain("a").values()) == 60


def handover(talk: Talk, worker: str, spent: int, *, left: int = 30, counted: int) -> list[Grant]:
    """Return the answers of a new pacer to a worker of an old one."""
    first = talk.tell(worker, epoch=12_345, lease=99, wants=8, spent=spent, spent_seconds=float(left))
    head = talk.head(counted, left=left)
    return [first, talk.tell(worker, wants=8, heads=[head])]


def test_a_new_pacer_listens_until_all_have_told_what_they_sent_and_grants_the_rest() -> None:
    talk = Talk()
    assert [grant.sends for grant in handover(talk, "a", 20, counted=45)] == [0, 0]
    talk.now += 1
    assert [grant.sends for grant in handover(talk, "b", 25, left=29, counted=45)] == [0, 0]
    talk.now += 3
    assert sum(talk.drain("a", "b").values()) == 15


def test_a_new_pacer_believes_what_was_counted_if_the_senders_have_died() -> None:
    talk = Talk()
    handover(talk, "a", 5, counted=45)
    talk.now += 4
    assert sum(talk.drain("a").values()) == 15


def test_what_was_sent_in_a_window_that_is_over_is_not_held_against_the_next_one() -> None:
    talk = Talk()
    talk.learn(left=40)
    talk.next_window()
    talk.tell("c", epoch=777, lease=3, spent=50, spent_seconds=0.2)
    assert sum(talk.drain("a").values()) == 60


def test_a_clock_that_is_set_back_makes_another_pacer_of_it() -> None:
    talk = Talk()
    talk.learn()
    epoch = talk.last["a"].epoch
    talk.now -= 3_600
    grant = talk.tell("a", wants=8, spent=10, spent_seconds=30.0)
    assert grant.epoch != epoch
    talk.now += 4
    talk.tell("a", heads=[talk.head(10, left=26)])
    assert sum(talk.drain("a").values()) == 50


def test_one_that_leaves_gives_back_what_it_has_and_is_forgotten() -> None:
    talk = Talk()
    talk.learn()
    sends = talk.tell("b", wants=8).sends
    talk.tell("b", is_leaving=True, returned=sends)
    assert list(talk.leases.state.workers) == ["a"]
    assert sum(talk.drain("a").values()) == 59


def test_the_many_ask_less_often() -> None:
    talk = Talk()
    talk.learn()
    few = talk.tell("a", wants=8).again_seconds
    for number in range(1_000):
        talk.tell(f"w{number}")
    assert few == 0.25
    assert 1.5 < talk.tell("a", wants=8).again_seconds <= 2.5


def test_workers_are_bounded_and_silent_ones_forgotten() -> None:
    talk = Talk()
    talk.learn()
    for number in range(12_000):
        talk.now += 0.001
        talk.tell(f"w{number}")
    assert len(talk.leases.state.workers) <= 10_000
    talk.now += 200
    talk.tell("z")
    assert list(talk.leases.state.workers) == ["z"]


@pytest.mark.proof
def test_keys_are_bounded_and_apart() -> None:
    pacer = SharedPacer(uniform=low)
    for number in range(3_000):
        report = Report(VERSION, number.to_bytes(8, "big"), "w", is_hungry=True, want=8)
        assert decode_grant(pacer.exchange(encode(report), float(number))).sends == 1
    assert repr(pacer) == "<SharedPacer: 1024 keys, 1024 workers>"


def again(worker: str, last: dict[str, Grant], fields: dict[str, Any]) -> bytes:
    """Return the next report of a worker that was granted this last."""
    known = {"epoch": last[worker].epoch, "lease": last[worker].lease} if worker in last else {}
    return encode(Report(VERSION, KEY, worker, **known, **fields))


def test_models_are_bounded() -> None:
    talk = Talk()
    for number in range(200):
        talk.tell("a", models=[ModelReport(f"model {number}", 1, 1, 8)])
    assert len(talk.leases.state.models) == len(talk.leases._models) == 64
    talk.tell("a", is_leaving=True)
    assert not any(model.members for model in talk.leases.state.models.values())


def test_a_stored_state_goes_on_as_one_in_memory_does() -> None:
    dice = random.Random(1)
    pacer, state, now = SharedPacer(uniform=low), None, 50.0
    last: dict[str, Grant] = {}
    twin: dict[str, Grant] = {}
    for _ in range(300):
        now += dice.uniform(0, 1)
        name = dice.choice("abc")
        fields = {
            "heads": [Head(now - 0.2, now, 60, dice.randrange(60), max(1, 60 - int(now % 60)))],
            "want": dice.randrange(9),
            "is_hungry": dice.random() < 0.5,
            "returned": dice.randrange(2),
        }
        grant = decode_grant(pacer.exchange(again(name, last, fields), now))
        state, answer = exchange_stored(state, again(name, twin, fields), now, uniform=low)
        other = decode_grant(answer)
        assert msgspec.structs.replace(other, epoch=grant.epoch) == grant
        last[name], twin[name] = grant, other


def test_a_state_that_is_none_is_refused() -> None:
    report = encode(Report(VERSION, KEY, "w"))
    for state in (b"", b"\xc0", b"\x91\x01", b"\x00" * 100):
        with pytest.raises(PacerMessageError, match="not the state of a pacer"):
            exchange_stored(state, report, 1.0)


def test_a_key_is_told_by_a_digest_that_does_not_contain_it() -> None:
    digest = key_digest(("https", "gateway.test", 443), b"llmg_secret")
    assert digest == key_digest(("https", "gateway.test", 443), b"llmg_secret")
    assert digest != key_digest(("https", "gateway.test", 444), b"llmg_secret")
    assert digest != key_digest(("https", "gateway.test", 443), b"llmg_secreu")
    assert b"secret" not in digest
    assert key_of(encode(Report(VERSION, digest, "w"))) == digest


def bytes_of(**changes: Any) -> bytes:
    fields: dict[str, Any] = dict.fromkeys(Report.__struct_fields__)
    fields.update(msgspec.structs.asdict(Report(VERSION, KEY, "w")))
    fields.update(changes)
    return msgspec.msgpack.encode(list(fields.values()))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a report: Input data was truncated"),
        (b"\x90", "not a report: Expected `array` of at least length 3"),
        (b"GET / HTTP/1.1\r\n\r\n", "not a report: "),
        (b"\x91" * 10_000, "not a report: "),
        (b"x" * (MESSAGE_BYTES_MAX + 1), "a report must be at most 262,144 bytes long, got 262,145"),
        (bytes_of(version=2), "a report must be of version 1, got 2: update both sides"),
        (bytes_of(worker=""), "not a report: Expected `str` of length >= 1"),
        (bytes_of(worker="w" * 65), "not a report: Expected `str` of length <= 64"),
        (bytes_of(key=b"short"), "not a report: Expected `bytes` of length >= 8"),
        (bytes_of(want=-1), "not a report: Expected `int` >= 0"),
        (bytes_of(want=COUNT_MAX + 1), "not a report: Expected `int` <= 1073741824"),
        (bytes_of(closed_seconds=float("nan")), "not a report: "),
        (bytes_of(spent_seconds=1e9), "not a report: Expected `float` <= 3600.0"),
        (
            bytes_of(heads=[[1.0, 2.0, 60, 1, 40]] * (HEADS_MAX + 1)),
            "not a report: Expected `array` of length",
        ),
        (bytes_of(heads=[[float("nan"), 2.0, 60, 1, 40]]), "not a report: a number that is not finite"),
        (bytes_of(heads=[[1.0, float("inf"), 60, 1, 40]]), "not a report: a number that is not finite"),
        (bytes_of(heads=[[1.0, 2.0, 0, 1, 40]]), "not a report: Expected `int` >= 1"),
        (bytes_of(models=[["m", 1, 1, 1, [float("nan")], []]]), "not a report: "),
    ],
)
def test_garbage_is_refused_and_changes_nothing(data: bytes, message: str) -> None:
    pacer = SharedPacer()
    with pytest.raises(PacerMessageError) as raised:
        pacer.exchange(data, 1.0)
    assert message in str(raised.value)
    assert repr(pacer) == "<SharedPacer: 0 keys, 0 workers>"


@given(st.binary(max_size=300))
def test_any_bytes_are_a_report_or_a_typed_error(data: bytes) -> None:
    for decode in (decode_report, decode_grant):
        try:
            decode(data)
        except PacerMessageError:
            pass


COUNTS = st.integers(0, 100) | st.integers(0, COUNT_MAX)

SECONDS = st.floats(0, 3_600, allow_nan=False)

HEADS = st.tuples(
    st.floats(-100, 100) | st.floats(-1e308, 1e308),
    st.floats(-100, 100) | st.floats(-1e308, 1e308),
    st.integers(1, 100) | st.integers(1, COUNT_MAX),
    COUNTS,
    st.integers(0, 60),
)

MODELS = st.builds(
    ModelReport,
    model=st.sampled_from("mn"),
    in_flight=COUNTS,
    want=COUNTS,
    limit=COUNTS,
    latencies=st.lists(SECONDS, max_size=3),
    overloads=st.lists(SECONDS, max_size=3),
    is_forgiven=st.booleans(),
)

REPORTS = st.fixed_dictionaries(
    {
        "worker": st.sampled_from("abcd"),
        "is_known": st.booleans(),
        "epoch": st.integers(0, 1 << 53),
        "lease": COUNTS,
        "is_hungry": st.booleans(),
        "want": COUNTS,
        "in_flight": COUNTS,
        "returned": COUNTS,
        "unleased": COUNTS,
        "spent": COUNTS,
        "spent_seconds": SECONDS,
        "is_free": st.booleans(),
        "closed_seconds": SECONDS,
        "is_leaving": st.booleans(),
        "heads": st.lists(HEADS, max_size=3),
        "models": st.lists(MODELS, max_size=2),
    }
)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(-10, 100), REPORTS), max_size=20))
def test_whatever_reports_claim_each_is_answered_within_bounds(
    talks: list[tuple[float, dict[str, Any]]],
) -> None:
    pacer, now, epoch = SharedPacer(uniform=low), 1_000.0, 0
    for seconds, told in talks:
        now += seconds
        fields = dict(told)
        if fields.pop("is_known"):
            fields["epoch"] = epoch
        heads = [Head(now + at, now + got, *rest) for at, got, *rest in fields.pop("heads")]
        report = Report(VERSION, KEY, heads=heads, **fields)
        grant = decode_grant(pacer.exchange(encode(report), now))
        epoch = grant.epoch
        assert grant.sends <= fields["want"]
        state = next(iter(pacer._keys.values())).state
        assert 0 <= state.used <= COUNT_MAX
        assert [model.model for model in grant.models] == (
            [] if report.is_leaving else [model.model for model in report.models]
        )
        assert grant.sends <= 1 or state.used <= state.limit


@pytest.mark.proof
def test_memory_is_bounded_whatever_comes() -> None:
    dice = random.Random(2)
    pacer, now, epoch = SharedPacer(uniform=low), 1_000.0, 0

    def talk(count: int) -> None:
        nonlocal now, epoch
        for _ in range(count):
            now += dice.uniform(0, 20)
            heads = [
                Head(
                    now - dice.uniform(0, 80),
                    now,
                    dice.randrange(1, 99),
                    dice.randrange(99),
                    1 + dice.randrange(60),
                )
            ]
            worker = str(dice.randrange(50))
            report = Report(VERSION, KEY, worker, epoch=epoch, want=9, is_hungry=True, heads=heads)
            epoch = decode_grant(pacer.exchange(encode(report), now)).epoch

    talk(1_000)
    tracemalloc.start()
    talk(1_000)
    before = tracemalloc.get_traced_memory()[0]
    talk(3_000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 20_000
