"""Laws of what a site computes of where the final network looks; the reference is ``explain``."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from client.attention import SCALARS, attention, attention_of, chosen_rows
from client.config import Limits, SiteConfig
from client.dataset import Images, Origin
from client.explanations import explain_site
from client.final_model import final_model
from client.manifest import Row
from client.pictures import Facts
from client.site import Site
from common.attention import ATTENTION, FIGURES, from_arrays, means
from common.messages import Order, Reply
from common.study import Study

CPU = torch.device("cpu")
LOG = logging.getLogger("test")
ASKED = {"attention": "gradcam"}
SPLITS = (*("train",) * 4, *("validation", "validation", "test", "test") * 3)
MakeOrder = Callable[..., Order]


def row(line: int, patient: str) -> Row:
    return Row(line=line, path=Path(f"{line}.png"), label=0, patient=patient, unit=patient)


def images_of(patients: Mapping[str, int]) -> Images:
    """Return what is known of images: rows of two images each, so many of each patient."""
    rows = [row(0, name) for name, count in patients.items() for _ in range(count)]
    origins = [
        Origin(Row(line=n + 2, path=r.path, label=0, patient=r.patient, unit=r.unit), part, Facts())
        for n, r in enumerate(rows)
        for part in ("1", "2")
    ]
    return Images(
        torch.zeros(len(origins), 1, 1, 1),
        torch.zeros(len(origins), dtype=torch.int64),
        tuple(origin.row.patient for origin in origins),
        tuple(origins),
    )


def let(config: SiteConfig, **limits: Any) -> SiteConfig:
    """Return the hospital with other limits."""
    changed = config.limits.model_copy(update={"attention": "report", **limits})
    return config.model_copy(update={"limits": changed})


@pytest.fixture
def hospital(make_hospital: Callable[..., SiteConfig]) -> SiteConfig:
    """Return a hospital of 6 test patients with 2 images each; diseased ones have masks."""
    config = make_hospital(splits=SPLITS)
    table = config.data["ct"].manifest
    lines = table.read_text().splitlines()
    mask = np.pad(np.full((10, 10), 255, np.uint8), 15)[:36, :40]
    Image.fromarray(mask).save(table.parent / "mask.png")
    marked = [line + (",mask.png" if "gaucher" in line else ",") for line in lines[1:]]
    table.write_text("\n".join([lines[0] + ",mask", *marked]) + "\n")
    return config


def answer(config: SiteConfig, order: Order) -> Reply:
    reply = Site(config).answer(order).reply
    assert reply.refusal == ""
    return reply


def test_a_site_reports_what_explain_computes(
    hospital: SiteConfig,
    make_study: Callable[..., Study],
    make_order: MakeOrder,
    tmp_path: Path,
) -> None:
    """Means and numbers of patients are those of the site's own command on the same network."""
    study = make_study(evaluation=ASKED)
    config = let(hospital)
    reply = answer(config, make_order(study, "evaluate", number=4))
    found = means(from_arrays(reply.metrics["ct", ATTENTION]))
    final = final_model(config, study, device=CPU)
    told = explain_site(
        config, final, "ct", tmp_path / "maps", method="gradcam", cells=6, count=99, device=CPU,
        log=LOG,
    )["reportable"]["means"]  # fmt: skip
    assert found
    for figure in FIGURES:
        value, even = SCALARS[figure]
        assert (figure in found) == (value in told)
        if figure in found:
            assert found[figure]["mean"] == pytest.approx(told[value]["mean"], rel=1e-9)
            assert found[figure]["even"] == pytest.approx(told[even]["mean"], rel=1e-9)
            assert found[figure]["patients"] == told[value]["patients"]


def test_nothing_leaves_unless_both_say_so(
    hospital: SiteConfig, make_study: Callable[..., Study], make_order: MakeOrder
) -> None:
    """A hospital that keeps it, a study that asks for none and a training are without."""
    asked, bare = make_study(evaluation=ASKED), make_study()
    for config, order in (
        (hospital, make_order(asked, "evaluate", number=4)),
        (let(hospital), make_order(bare, "evaluate", number=4)),
        (let(hospital), make_order(asked, "train")),
    ):
        reply = answer(config, order)
        assert ("ct", "test") in reply.metrics
        assert ("ct", ATTENTION) not in reply.metrics


def test_too_few_patients_stay_at_home(
    hospital: SiteConfig, make_study: Callable[..., Study], make_order: MakeOrder
) -> None:
    """Of 6 patients 3 are ill: with a minimum of 3 all figures leave, with 4 none of the task."""
    order = make_order(make_study(evaluation=ASKED), "evaluate", number=4)
    assert ("ct", ATTENTION) in answer(let(hospital, minimum_patients=3), order).metrics
    site = Site(let(hospital, minimum_patients=4))
    done = site.answer(order)
    assert ("ct", ATTENTION) not in done.reply.metrics
    assert ("ct", ATTENTION) in done.measured  # what the audit log calls suppressed


def test_a_row_that_cannot_be_looked_at_is_left_out(
    hospital: SiteConfig,
    make_study: Callable[..., Study],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A mask of another size costs its rows, and the site's log names their lines."""
    study, config = make_study(evaluation=ASKED), let(hospital)
    prepared = Site(config).prepare(study)
    Image.new("L", (8, 8), 255).save(config.data["ct"].manifest.parent / "mask.png")
    with caplog.at_level(logging.WARNING, "test"):
        found = attention(
            prepared.model, prepared.tasks["ct"].splits["test"], "ct", study, config.limits,
            device=CPU, log=LOG,
        )  # fmt: skip
    assert caplog.text.count("is not looked at") == 6
    assert found.table[FIGURES.index("energy")].tolist() == [0, 0, 0]
    assert found.table[FIGURES.index("border"), 0] == len(found.patients[0]) <= 3


def test_patients_are_chosen_by_their_hash_alone() -> None:
    """The first hashes come, with all their rows; a row of several images comes once."""
    images = images_of({"c": 1, "a": 2, "d": 1, "b": 1})
    chosen = chosen_rows(images, 2, Limits(minimum_patients=2))
    assert [(r.patient, r.line) for r in chosen] == [("a", 3), ("a", 4), ("b", 6)]
    assert len(chosen_rows(images, 99, Limits())) == 5


def test_never_are_only_a_few_left_over() -> None:
    """Where fewer than the minimum would be, more are: their number could be had by subtraction."""
    images = images_of({f"{n:02}": 1 for n in range(20)})
    for most, chosen in ((20, 20), (19, 15), (16, 15), (15, 15), (14, 14), (1, 1)):
        assert len(chosen_rows(images, most, Limits(minimum_patients=5))) == chosen


def test_each_patient_counts_once() -> None:
    """Of several images a patient gives the mean of those that have the figure."""
    border = [{"border_attention": v, "border_area": 0.2} for v in (0.1, 0.3, 0.7)]
    text: dict[str, float] = {"text_attention": 0.5, "text_area": 0.1, **border[2]}
    found = attention_of({"p": [border[0], border[1], {}], "q": [text], "r": [{}]})
    assert found.table[0].tolist() == pytest.approx([2, 0.2 + 0.7, 0.4])
    assert found.table[1].tolist() == [1, 0.5, 0.1]
    assert [sorted(of) for of in found.patients] == [["p", "q"], ["q"], [], [], []]
    assert not attention_of({}).table.any()
