"""Laws of the step that tries a study on this machine."""

from collections.abc import Callable

import pytest
import torch

from client.rehearsal import find_cuda, model_of, one_step, size_of, try_gpu
from common.study import Study

MakeStudy = Callable[..., Study]


def test_the_size_is_that_of_all_arrays(make_study: MakeStudy) -> None:
    """Parameters and buffers count, each with its own bytes."""
    model = model_of(make_study())
    expected = sum(4 * value.numel() for value in model.parameters())
    expected += sum(value.numel() * value.element_size() for value in model.buffers())
    assert size_of(model) == expected


def test_a_step_trains_on_a_full_batch(make_study: MakeStudy) -> None:
    """One step of the study's own training changes the network, and its loss is finite."""
    study = make_study()
    model = model_of(study)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert one_step(model, study, torch.device("cpu")) > 0
    assert any(not value.equal(before[name]) for name, value in model.state_dict().items())


def test_no_card_is_found_where_there_is_none() -> None:
    """A card of an impossible number is never found."""
    assert find_cuda("cuda:99") is None
    assert (find_cuda("auto") is not None) == torch.cuda.is_available()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card here")
def test_a_card_tells_what_a_step_took(make_study: MakeStudy) -> None:
    """The peak lies above the network's own size and below what the card has."""
    study = make_study()
    model = model_of(study)
    found = try_gpu(model, study, torch.device("cuda"))
    assert found.peak is not None
    assert size_of(model) < found.peak <= found.total
