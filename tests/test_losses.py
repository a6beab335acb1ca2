"""Per-example losses against NumPy and SciPy."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import log_softmax

from pipeline.losses import carlini_wagner, cross_entropy, margin

LOGITS = hnp.arrays(np.float64, (4, 3), elements=st.floats(-30, 30))
LABELS = hnp.arrays(np.int64, 4, elements=st.integers(0, 2))


def numpy_margin(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    others = [np.delete(row, label).max() for row, label in zip(logits, labels, strict=True)]
    return logits[np.arange(len(labels)), labels] - others


@given(LOGITS, LABELS)
def test_cross_entropy_is_minus_the_log_probability_of_the_label(logits: np.ndarray, labels: np.ndarray) -> None:
    loss = cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    np.testing.assert_allclose(loss.numpy(), -log_softmax(logits, 1)[np.arange(4), labels], atol=1e-12)


@given(LOGITS, LABELS)
def test_margin_is_the_lead_of_the_label_over_the_best_other(logits: np.ndarray, labels: np.ndarray) -> None:
    lead = margin(torch.from_numpy(logits), torch.from_numpy(labels))
    np.testing.assert_array_equal(lead.numpy(), numpy_margin(logits, labels))


@given(LOGITS, LABELS)
def test_margin_is_positive_exactly_where_the_classification_is_right(logits: np.ndarray, labels: np.ndarray) -> None:
    assume(all(len(set(row)) == 3 for row in logits))
    lead = margin(torch.from_numpy(logits), torch.from_numpy(labels))
    assert ((lead.numpy() > 0) == (logits.argmax(1) == labels)).all()


def test_a_tie_counts_as_broken() -> None:
    assert margin(torch.tensor([[2.0, 2.0, 1.0]]), torch.tensor([0])).item() == 0


@given(LOGITS, LABELS, st.floats(0, 60))
def test_carlini_wagner_is_the_negated_hinge_of_margin_plus_confidence(
    logits: np.ndarray, labels: np.ndarray, confidence: float
) -> None:
    loss = carlini_wagner(torch.from_numpy(logits), torch.from_numpy(labels), confidence)
    np.testing.assert_allclose(loss.numpy(), -np.maximum(numpy_margin(logits, labels) + confidence, 0))


@pytest.mark.parametrize("gap, pushes", [(49.0, True), (51.0, False)])
def test_carlini_wagner_pushes_until_the_wrong_class_leads_by_50(gap: float, pushes: bool) -> None:
    logits = torch.tensor([[0.0, gap, -5.0]], requires_grad=True)
    carlini_wagner(logits, torch.tensor([0])).sum().backward()
    assert logits.grad.tolist() == ([[-1.0, 1.0, 0.0]] if pushes else [[0.0, 0.0, 0.0]])


@pytest.mark.parametrize("loss", [cross_entropy, margin, carlini_wagner])
@given(LOGITS, LABELS, st.floats(-5, 5))
def test_no_loss_depends_on_a_shift_of_the_logits(loss, logits: np.ndarray, labels: np.ndarray, shift: float) -> None:
    before, after = (loss(torch.from_numpy(z), torch.from_numpy(labels)) for z in (logits, logits + shift))
    assert before.shape == (4,)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-10)
