"""What the tests of the networks share: a study of one of them."""

from collections.abc import Callable

import pytest

from common.study import Study


@pytest.fixture(scope="session")
def study_of() -> Callable[..., Study]:
    """Return the maker of a study of one round that trains a backbone, all of it or a part."""

    def make(
        name: str, weights: str = "start.safetensors", train: str = "all", image_size: int = 64
    ) -> Study:
        return Study.parse(
            {
                "name": "s",
                "rounds": 1,
                "backbone": {"name": name, "weights": weights, "image_size": image_size},
                "tasks": {"t": {"modality": "CT", "classes": ["a", "b"]}},
                "training": {"train": train},
            }
        )

    return make
