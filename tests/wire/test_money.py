"""Amounts of money: their sums, and how they are shown."""

import copy
import pickle
import random
from fractions import Fraction

import pytest

from omnigate import BatchStats
from omnigate._wire.money import Sum, Usd, positional, shown_usd


def test_a_sum_of_amounts_does_not_drift() -> None:
    total = Sum()
    for _ in range(20):
        total.add(0.000004)
    assert sum([0.000004] * 20) != 0.00008  # as floats would have it
    assert total.value() == 0.00008


def test_taking_an_amount_away_restores_the_sum() -> None:
    total = Sum()
    total.add(0.1)
    total.add(1e9)
    total.add(-1e9)
    assert total.value() == 0.1


def test_a_sum_is_exact_whatever_the_amounts() -> None:
    chosen = random.Random(3)
    total, exact = Sum(), Fraction()
    for _ in range(2_000):
        digits = chosen.randrange(18)
        amount = round(chosen.choice((chosen.random(), chosen.uniform(-2e3, 2e3), 1e-13)), digits)
        amount *= chosen.choice((1, 1, -1))
        total.add(amount)
        exact += Fraction(repr(amount))
        assert total.value() == float(exact)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (8e-05, "0.00008"),
        (1.5e-9, "0.0000000015"),
        (0.0, "0.0"),
        (12.5, "12.5"),
        (1e22, "10000000000000000000000"),
        (-8e-05, "-0.00008"),
        (float("inf"), "inf"),
    ],
)
def test_an_amount_is_shown_without_an_exponent(amount: float, text: str) -> None:
    assert (positional(amount), str(Usd(amount)), repr(Usd(amount))) == (text, text, text)
    assert float(text) == amount


def test_the_costs_of_a_batch_are_numbers_that_are_shown_as_money() -> None:
    stats = BatchStats(cost_usd=8e-05, projected_cost_usd=1e-05, journal_cost_usd=2e-05)
    for copied in (stats, pickle.loads(pickle.dumps(stats)), copy.copy(stats)):
        assert copied == stats
        assert copied.cost_usd * 2 == 1.6e-04
        assert f"{copied.cost_usd}" == "0.00008"
        assert "cost_usd=0.00008" in repr(copied)
        assert "projected_cost_usd=0.00001" in repr(copied)
        assert "journal_cost_usd=0.00002" in repr(copied)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (1234.5, "1,234.5000 USD"),
        (0.0, "0.0000 USD"),
        (0.012345, "0.0123 USD"),
        (0.000012345, "0.000012 USD"),
    ],
)
def test_a_display_shows_small_amounts_with_two_significant_digits(amount: float, text: str) -> None:
    assert shown_usd(amount) == text
