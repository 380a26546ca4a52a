"""Laws of the noise's randomness."""

import torch

from client.private_noise import seed_from_system


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
