"""Studies and hospitals that several benches share."""

from pathlib import Path
from typing import Any

from common.study import Study
from simulations import hospitals
from simulations.phantoms import TASKS


def phantom_study(**sections: Any) -> Study:
    """Return a study of all phantom tasks; sections replace or widen those below."""
    values: dict[str, Any] = {
        "name": "bench",
        "rounds": 3,
        "backbone": {"name": "test_resnet", "weights": "none", "image_size": 96},
        "tasks": {
            name: {
                "modality": task.modality,
                "classes": list(task.classes),
                "positive": task.positive,
            }
            for name, task in TASKS.items()
        },
    }
    for name, section in sections.items():
        known = values.get(name)
        values[name] = {**known, **section} if isinstance(known, dict) else section
    return Study.parse(values)


def phantom_hospitals(folder: Path, *, sites: int = 6, patients: int = 40) -> list[Path]:
    """Make phantom hospitals in ``folder``."""
    return hospitals.make(folder, sites=sites, patients=patients, images=3, seed=0)
