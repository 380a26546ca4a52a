"""The Gaussian noise of private training, and where its randomness comes from."""

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from torch import Tensor, nn

from client.plan import Plan

Sums = Mapping[nn.Parameter, Tensor]
"""The sum of the patients' clipped gradients, for each parameter that trains."""


@contextmanager
def noise_for(
    optimizer: torch.optim.Optimizer, plan: Plan, device: torch.device
) -> Iterator[Callable[[Sums], None]]:
    """Give what turns sums of clipped gradients into the noisy gradients of a step.

    Noise and scale are Opacus': N(0, (sigma C)^2) on each number, then division by the expected
    number of patients, whatever the number that was drawn.
    """
    generator = torch.Generator(device)
    noisy = DPOptimizerFastGradientClipping(
        optimizer,
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=plan.clip_norm,
        expected_batch_size=plan.sample_rate * plan.patients,
        generator=generator,
    )

    def add(sums: Sums) -> None:
        for parameter in noisy.params:
            parameter.summed_grad = sums[parameter]  # where Opacus looks for it
        seed_from_system(generator)
        noisy.add_noise()
        noisy.scale_grad()
        for parameter in noisy.params:
            parameter.summed_grad = None

    try:
        yield add
    finally:
        for parameter in noisy.params:
            del parameter.summed_grad


def seed_from_system(generator: torch.Generator) -> None:
    """Give a generator a state that is wholly the operating system's randomness.

    On the CPU torch reads only 32 bits of a seed: whoever sees some noise could try them all. So
    all 624 words of the Mersenne twister are set. It is no cryptographic generator all the same,
    which is why each step gets a new state.
    """
    generator.manual_seed(secrets.randbits(63))
    if generator.device.type != "cpu":
        return
    state = generator.get_state()
    # Behind the header of 24 bytes stand the 624 words of 32 bits, in 64 bits each.
    words = np.frombuffer(secrets.token_bytes(624 * 4), dtype=np.uint32).astype(np.int64)
    state[24 : 24 + 624 * 8].view(torch.int64).copy_(torch.from_numpy(words))
    generator.set_state(state)
