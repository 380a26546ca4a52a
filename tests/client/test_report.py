"""Laws of ``rarefed-client report``: one page at the site, and what clinicians say of it."""

import json
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from client.cli import app
from client.config import SiteConfig
from client.feedback import file_of, kept, known_cases
from client.report_federation import federation_of
from client.site import Site
from common.arrays import digest
from common.errors import (
    DataError,
    FederationError,
    RarefedError,
    StudyMismatchError,
    TaskWithoutSiteError,
    WeightsError,
)
from common.messages import Order
from common.models import build_model
from common.study import Study
from common.weights import take
from server.studies import toml_text

RUN = CliRunner()
PATIENTS = (*("train",) * 6, *("validation",) * 4, *("test",) * 6)
TIME = "2026-01-02T03:04:05.678Z"
MakeStudy = Callable[..., Study]
MakeHospital = Callable[..., SiteConfig]
MakeOrder = Callable[..., Order]


@pytest.fixture
def site(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder, tmp_path: Path
) -> tuple[SiteConfig, Study, Path]:
    """Return a hospital that keeps a study's final network, the study, and its file."""
    study, config = make_study(), make_hospital(splits=PATIENTS)
    assert Site(config).answer(make_order(study, "evaluate", number=2)).reply.metrics
    file = tmp_path / "study.toml"
    file.write_text(toml_text(study))
    return config, study, file


Place = tuple[SiteConfig, Study, Path]


def invoked(place: Place, *options: str) -> Any:
    config, _, file = place
    return RUN.invoke(app, ["report", str(config.state.parent), "--study", str(file), *options])


def asked(place: Place, *options: str) -> dict[str, Any]:
    result = invoked(place, *options, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(place: Place, *options: str) -> RarefedError:
    error = invoked(place, *options).exception
    assert isinstance(error, RarefedError)
    return error


def test_the_page_is_one_file_for_the_owner(site: Place) -> None:
    """By default it lies in 'state', 0600; every test row has an outcome, and maps are drawn."""
    config, _, _ = site
    found = asked(site)
    page = config.state / "report.html"
    assert found["file"] == str(page)
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert sum(found["outcomes"]["ct"].values()) == 12
    text = page.read_text()
    assert text.count('src="data:image/jpeg;base64,') == 2 * found["cases"]["ct"] > 0
    assert "Not a medical device" in text
    assert "scan_" not in text
    assert "PATIENT" not in text
    assert not re.search(r"\b[0-9a-f]{32}\b", re.sub(r'data-case="[0-9a-f]{32}"', "", text))


def test_classical_ways_stand_on_the_page(site: Place) -> None:
    """As the command that evaluates has them: their figures, and what networks have more."""
    config, _, _ = site
    asked(site, "--cases", "0", "--classical", "handcrafted-svm")
    page = (config.state / "report.html").read_text()
    assert "global - handcrafted-svm" in page
    assert "models beside one another" in page


def test_cases_and_place_are_as_asked(site: Place, tmp_path: Path) -> None:
    """So many cases of a kind at most, where it was asked for, with names only on demand."""
    out = tmp_path / "elsewhere" / "page.html"
    found = asked(site, "--cases", "1", "--out", str(out), "--names", "--method", "gradcam")
    assert found["cases"]["ct"] == len(found["outcomes"]["ct"])
    assert "scan_" in out.read_text()
    none = asked(site, "--cases", "0", "--out", str(out))
    assert none["cases"] == {"ct": 0}
    assert "No case is shown" in out.read_text()


def saved(folder: Path, found: dict[str, Any], cases: list[dict[str, Any]], **head: Any) -> str:
    values = {
        "format": "rarefed-feedback-1",
        "study": found["digest"],
        "model": found["model_sha256"],
        "site": found["site"],
        "cases": cases,
    }
    file = folder / "saved.json"
    file.write_text(json.dumps({**values, **head}))
    return str(file)


def test_feedback_is_kept_and_the_next_page_shows_it(site: Place, tmp_path: Path) -> None:
    """A case of the page that is judged is judged on the next page; a second time is no more."""
    config, study, _ = site
    found = asked(site, "--cases", "50")
    page = config.state / "report.html"
    case = re.findall(r'data-case="([0-9a-f]{32})"', page.read_text())[0]
    assert case in known_cases(config, study)
    one = {
        "case": case,
        "task": "ct",
        "opinion": "disagree",
        "label": "",
        "note": "see <b>slice</b>",
        "time": TIME,
    }
    again = asked(site, "--cases", "50", "--feedback", saved(tmp_path, found, [one]))
    assert (again["new_opinions"], again["opinions"]) == (1, {"ct": 1})
    assert [o.note for o in kept(file_of(config, study), study)] == ["see <b>slice</b>"]
    assert "<b>slice" not in page.read_text()
    assert asked(site, "--feedback", saved(tmp_path, found, [one]))["new_opinions"] == 0


def test_feedback_of_something_else_changes_nothing(site: Place, tmp_path: Path) -> None:
    """Another network or study, or a case that is none, is refused before anything is written."""
    config, study, _ = site
    found = asked(site, "--cases", "1")
    before = (config.state / "report.html").read_bytes()
    other = saved(tmp_path, found, [], model="0" * 64)
    assert isinstance(refused(site, "--feedback", other), StudyMismatchError)
    unknown = {"case": "0" * 32, "task": "ct", "opinion": "agree", "time": TIME}
    assert isinstance(refused(site, "--feedback", saved(tmp_path, found, [unknown])), DataError)
    assert not file_of(config, study).exists()
    assert (config.state / "report.html").read_bytes() == before


def exported(folder: Path, study: Study, **card: Any) -> Path:
    """Write what an export has of the study's first network."""
    folder.mkdir(exist_ok=True)
    model = build_model(study)
    notes = {"study_digest": study.digest(), "round": "1"}
    arrays = take(model, model.state_dict())
    save_file(arrays, folder / "model.safetensors", metadata={"rarefed": json.dumps(notes)})
    assert load_file(folder / "model.safetensors")
    (folder / "study.toml").write_text(toml_text(study))
    if card:
        said = {"digest": study.digest(), "arrays_sha256": digest(arrays), "measured_same": True}
        (folder / "card.json").write_text(json.dumps(said | card))
    return folder


POOLED = {"auroc": 0.875, "n_patients": 40, "n_images": 80}
FIGURES = {"ct": {"test": {"pooled": POOLED, "intervals": {"pooled": {"auroc": [0.8, 0.9]}}}}}


def test_an_export_brings_the_federations_figures(site: Place, tmp_path: Path) -> None:
    """The exported network is shown, and the figures of all sites stand beside this one's."""
    config, study, _ = site
    folder = exported(tmp_path / "export", study, measured_round=1, figures=FIGURES)
    found = asked(site, "--model", str(folder), "--cases", "1")
    assert found["model_round"] == 1
    text = (config.state / "report.html").read_text()
    assert "0.875" in text
    assert "(0.800 to 0.900)" in text
    assert "not known here: the page was made without" not in text


def test_figures_come_from_the_history_where_there_is_no_card(site: Place, tmp_path: Path) -> None:
    """The last line that measured counts; without figures nothing is known."""
    _, study, _ = site
    folder = exported(tmp_path / "export", study)
    assert federation_of(folder, study) is None
    lines = [{"model_round": n, "tasks": FIGURES if n < 2 else {}} for n in range(3)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "history.jsonl").write_text(text)
    found = federation_of(folder, study)
    assert found is not None
    assert (found.model_round, found.tasks["ct"]["pooled"]) == (1, POOLED)


def test_a_card_of_another_study_or_none_at_all_is_refused(site: Place, tmp_path: Path) -> None:
    """Figures of another study never stand beside a site's; damaged ones are named."""
    _, study, _ = site
    folder = exported(tmp_path / "export", study, figures=FIGURES, measured_round=1)
    (folder / "card.json").write_text('{"digest": "other"}')
    assert isinstance(refused(site, "--model", str(folder)), StudyMismatchError)
    wrong: list[Any] = [3, {"ct": {"test": {}}}, {"ct": {"test": {"pooled": {"auroc": "x"}}}}]
    head = {"digest": study.digest(), "measured_round": 1}
    for text in ("{", "[]", *(json.dumps({**head, "figures": figures}) for figures in wrong)):
        (folder / "card.json").write_text(text)
        with pytest.raises(WeightsError):
            federation_of(folder, study)


def test_a_site_without_network_or_task_is_refused(
    make_study: MakeStudy, make_hospital: MakeHospital, tmp_path: Path
) -> None:
    """What cannot be shown is an error with a remedy, not an empty page."""
    config, study, file = make_hospital(), make_study(), tmp_path / "study.toml"
    file.write_text(toml_text(study))
    place = config, study, file
    assert isinstance(refused(place), FederationError)
    file.write_text(toml_text(make_study(tasks={"mr": study.tasks["ct"].model_dump()})))
    assert isinstance(refused(place), TaskWithoutSiteError)


def test_the_words_are_for_people(site: Place) -> None:
    """Without --json the outcomes, the place and what this is not are said."""
    result = invoked(site, "--cases", "1")
    assert result.exit_code == 0, result.output
    for words in ("shown", "report.html", "Not a medical device"):
        assert words in result.stdout
