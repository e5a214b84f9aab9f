import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deqflow.evidence.diagnostics import rank_correlation, sparsification

errors = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0]), min_size=3, max_size=40).filter(any)


def test_only_the_order_matters_to_rank_correlation(generator):
    error = torch.rand(6, 7, generator=generator)
    assert rank_correlation(error.exp(), error) == pytest.approx(1)
    assert rank_correlation(-(error**3), error.numpy()) == pytest.approx(-1)


def test_rank_correlation_is_spearmans_also_with_ties():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    expected = stats.spearmanr(a, b)
    assert rank_correlation(a, b) == pytest.approx(expected[0])


@pytest.mark.parametrize("constant", [0, 1])
def test_rank_correlation_with_a_constant_is_not_defined(constant):
    values = [np.arange(4.0), np.arange(4.0)]
    values[constant] = np.ones(4)
    assert np.isnan(rank_correlation(*values))


def test_sparsification_of_four_pixels_by_hand():
    curve = sparsification(torch.tensor([1.0, 4.0, 3.0, 2.0]), torch.tensor([0.0, 2.0, 4.0, 2.0]), steps=4)
    assert curve.removed.tolist() == [0, 0.25, 0.5, 0.75]
    assert curve.remaining.tolist() == [1, 1, 0.5, 0]  # means 2, (0 + 4 + 2) / 3, (0 + 2) / 2, 0
    assert curve.oracle.tolist() == pytest.approx([1, 2 / 3, 0.5, 0])
    assert curve.area == pytest.approx(0.25 / 3)  # one triangle of two steps, 1/3 high
    assert curve.area_of_chance == pytest.approx(0.25 * (1 / 6 + (1 / 3 + 1 / 2) / 2 + (1 / 2 + 1) / 2))


@settings(max_examples=50)
@given(errors)
def test_the_error_itself_is_the_oracle_and_a_constant_is_chance(error):
    known = sparsification(np.array(error), np.array(error), steps=7)
    assert known.area == pytest.approx(0, abs=1e-12)
    unknowing = sparsification(np.zeros(len(error)), np.array(error), steps=7)
    assert unknowing.remaining == pytest.approx(np.ones(7))
    assert unknowing.area == pytest.approx(unknowing.area_of_chance)


@settings(max_examples=50)
@given(errors, st.randoms(use_true_random=False))
def test_no_order_beats_the_oracle(error, random):
    uncertainty = random.choices([1.0, 2.0, 3.0], k=len(error))
    curve = sparsification(np.array(uncertainty), np.array(error), steps=7)
    assert (curve.remaining >= curve.oracle - 1e-12).all()
    assert (curve.remaining[0], curve.oracle[0]) == pytest.approx((1, 1))


def test_some_pixel_is_left_however_few_there_are():
    curve = sparsification(np.array([1.0, 2.0]), np.array([1.0, 3.0]), steps=50)
    assert np.isfinite(curve.remaining).all()
    assert curve.remaining[-1] == pytest.approx(0.5)


@pytest.mark.parametrize("measure", [rank_correlation, sparsification])
def test_measures_of_calibration_say_what_they_expect(measure):
    with pytest.raises(ValueError, match=r"the same pixels, at least two, got \(3,\) and \(4,\)"):
        measure(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match=r"at least two, got \(1,\)"):
        measure(np.ones(1), np.ones(1))
    with pytest.raises(ValueError, match="finite values: select"):
        measure(torch.tensor([1.0, torch.nan]), torch.ones(2))


def test_sparsification_says_what_errors_and_steps_it_expects():
    with pytest.raises(ValueError, match="not all of them 0"):
        sparsification(np.arange(3), np.zeros(3))
    with pytest.raises(ValueError, match="0 or more"):
        sparsification(np.arange(3), np.array([1.0, -1.0, 2.0]))
    with pytest.raises(ValueError, match="at least 2 steps, got 1"):
        sparsification(np.arange(3), np.ones(3), steps=1)
