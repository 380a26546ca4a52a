"""Laws of the noise's randomness."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from client.plan import Plan
from client.private_noise import noise_for, seed_from_system


@pytest.mark.parametrize("patients", [8, 16, 30])
def test_the_sum_is_divided_by_the_patients_expected_today(patients: int) -> None:
    """By q N of the patients that there are now, however few or many were drawn."""
    plan = Plan(0.0, 0.25, 1, patients, 1.0, 1, 8.0, 1e-3)
    weight = nn.Parameter(torch.zeros(3))
    with noise_for(torch.optim.SGD([weight]), plan, torch.device("cpu")) as add_noise:
        add_noise({weight: torch.ones(3)})
    assert weight.grad is not None
    assert torch.allclose(weight.grad, torch.full((3,), 1 / (0.25 * patients)))


def test_no_global_seed_makes_the_noise() -> None:
    """Drawn twice with all global generators seeded alike, it differs in every number."""
    found = []
    for _ in range(2):
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002 - the global state is what is looked at
        torch.manual_seed(3)
        weight = nn.Parameter(torch.zeros(100))
        plan = Plan(1.0, 1.0, 1, 8, 1.0, 1, 8.0, 1e-3)
        with noise_for(torch.optim.SGD([weight]), plan, torch.device("cpu")) as add_noise:
            add_noise({weight: torch.zeros(100)})
        assert weight.grad is not None
        found.append(weight.grad)
    assert found[0].ne(found[1]).all()


def test_a_seed_of_32_bits_does_not_give_the_noise() -> None:
    """The state of the noise's generator is not the one that its seed, or any number, gives."""
    generator, other = torch.Generator(), torch.Generator()
    states = []
    for _ in range(2):
        seed_from_system(generator)
        states.append(generator.get_state())
        found = torch.normal(0.0, 1.0, (64,), generator=generator)
        other.manual_seed(generator.initial_seed())
        assert not torch.equal(torch.normal(0.0, 1.0, (64,), generator=other), found)
    words = [state[24 : 24 + 624 * 8].view(torch.int64) for state in states]
    assert (words[0] == words[1]).sum() <= 1
    for found_words in words:
        assert found_words.min() >= 0
        assert found_words.max() < 2**32
        # Ones and zeros in equal number: no word was left as it was.
        bits = sum(int(word).bit_count() for word in found_words)
        assert abs(bits - 624 * 16) < 5 * (624 * 8) ** 0.5
