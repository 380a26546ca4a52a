"""Laws of the clinician's page, in a headless Chromium: offline, operable, legible, harmless."""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Page, sync_playwright

from client.attention_warnings import Share
from client.benefit import Benefit
from client.bootstrap import Estimate
from client.dataset import Images, Origin, TaskData
from client.evaluation import LocalFigures
from client.feedback import Feedback, KeptOpinion
from client.local_figures import TaskFigures, figures_of_task
from client.localisation import Localisation
from client.manifest import Row
from client.pictures import Facts
from client.report_cases import Looked, gallery, overlay_of, picture_of, shown_rows
from client.report_federation import Federation
from client.report_page import page_of, write_page
from client.report_views import Attention, CaseView, Report, TaskView
from common.study import Task

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = '<script>document.title="taken"</script>'
NOTE = "</script><img src=x onerror=\"document.title='taken'\"> 'quoted' \"twice\" é"
TWO = Task(modality="fundus", classes=["healthy", HOSTILE], positive=HOSTILE)
THREE = Task(modality="CT", classes=["a", "b", "c"])
STUDY, MODEL = "1" * 64, "2" * 64
TIME = "2026-01-02T03:04:05.678Z"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")


def measured(task: Task, n: int, seed: int) -> tuple[TaskFigures, list[Row]]:
    """Return a task's figures on noise, and its test rows."""
    rng = np.random.default_rng(seed)
    k = len(task.classes)
    splits, logits, rows = {}, {}, []
    for split in ("train", "validation", "test"):
        labels = np.arange(n) % k
        rows = [
            Row(
                line=i + 2,
                path=Path(f"/secret/{split}-{i}.png"),
                label=int(labels[i]),
                patient=f"patient-{i:030}",
                unit=f"patient-{i:030}",
                sex="F" if i % 3 else "M",
                scanner=HOSTILE if i % 2 else "plain",
            )
            for i in range(n)
        ]
        logits[split] = np.eye(k)[labels] * 2 + rng.normal(0, 1.5, (n, k))
        splits[split] = Images(
            torch.zeros(n, 1, 2, 2),
            torch.from_numpy(labels),
            tuple(row.patient for row in rows),
            tuple(Origin(row, "", Facts()) for row in rows),
        )
    data = TaskData(splits, 0)
    return figures_of_task(logits, data, task, minimum=4, each_image=False, seed=1), rows


def view_of(task: Task, seed: int, opinions: dict[int, str]) -> TaskView:
    figures, rows = measured(task, 24, seed)
    threshold = None if task.positive is None else 0.4
    shown = shown_rows(figures.cases, rows, task, threshold)
    image, heat = np.full((40, 60), 0.4, np.float32), np.zeros((40, 60), np.float32)
    heat[5:20, 5:20] = 1
    looked = Looked(image, heat, None, Facts(), {}, None, "")
    cases = [
        CaseView(
            id=f"{seed}{one.row.line:031x}",
            shown=one,
            sure=sure,
            threshold=threshold,
            warnings=["62% of the attention lies on the image's border."]
            if number % 3 == 0
            else [],
            places=["border"] if number % 3 == 0 else [],
            groups={"sex": one.row.sex, "scanner": one.row.scanner},
            image=picture_of(looked),
            overlay=overlay_of(looked),
            empty=False,
            marked=False,
            mask_fault=number == 1,
            localisation=Localisation(True, 0.5, 0.2, 0.3, 0.1, 0.2) if number == 0 else None,
            opinion=None,
            name="",
        )
        for number, (one, sure) in enumerate(gallery(shown, 4, by_class=task.positive is None))
    ]
    cases = [
        case._replace(
            opinion=KeptOpinion(
                case=case.id, task="eye", opinion=opinions[i], note=NOTE, time=TIME, model=MODEL
            )
        )
        if i in opinions
        else case
        for i, case in enumerate(cases)
    ]
    outcomes: dict[str, int] = {}
    for one in shown:
        outcomes[one.outcome] = outcomes.get(one.outcome, 0) + 1
    return TaskView(
        figures=figures,
        threshold=threshold,
        layer="blocks.6, 7 x 7",
        no_maps="",
        attention=Attention(
            24, 24, {"border": Share(0.5, 0.19)}, {"border": 7}, ["50% lies on the border."], 3,
            {"pointing": 0.5, "energy": 0.3, "iou": 0.1, "dice": 0.2, "area": 0.1, "chance": 0.2},
        ),
        cases=cases,
        outcomes=outcomes,
        unread=1,
        listed={"train": (24, 24), "validation": (24, 24), "test": (24, 24)},
    )  # fmt: skip


def report_of() -> Report:
    eye, lung = view_of(TWO, 1, {0: "disagree"}), view_of(THREE, 2, {})
    auroc = {"auroc": Estimate(0.9, 0.8, 0.95), "brier": Estimate(None, None, None, "undefined")}
    gain = {"auroc": Estimate(0.1, 0.02, 0.2), "brier": Estimate(0.0, None, None, "too few")}
    figures = LocalFigures(
        format="rarefed-evaluation-1",
        disclaimer="Not a medical device: the figures are for research.",
        site="site-a",
        study="demo",
        digest=STUDY,
        model="global",
        model_round=3,
        sha256=MODEL,
        software="0",
        minimum_patients=4,
        tasks={"eye": eye.figures, "lung": lung.figures},
        benefit={
            "eye": Benefit({"global": auroc, "alone": auroc}, {"global - alone": gain}),
        },
    )
    seen = {"border": {"mean": 0.27, "even": 0.19, "patients": 88}}
    pooled = {
        "pooled": {"auroc": 0.93},
        "intervals": {"pooled": {"auroc": [0.9, 0.96]}},
        "attention": {"pooled": seen},
    }
    return Report(
        figures, Federation(2, {"eye": pooled}), {"eye": eye, "lung": lung}, "hirescam", False
    )


@pytest.fixture(scope="module")
def report() -> Report:
    """Return what a page shows: a task of two classes and one of three, with hostile words."""
    return report_of()


@pytest.fixture(scope="module")
def file(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    write_page(report, file)
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a headless Chromium without a network."""
    with sync_playwright() as player:
        opened = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, file: Path) -> Iterator[Page]:
    """Return the page, opened offline, in a browser that has never seen it."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    opened = context.new_page()
    opened.goto(file.as_uri())
    yield opened
    context.close()


CONTRAST = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (text) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = (c) => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
  const ground = (node) => {
    for (let one = node; one; one = one.parentElement) {
      const colour = rgba(getComputedStyle(one).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    return dark ? [0, 0, 0, 255] : [255, 255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.getClientRects().length) continue;
    if (node.closest("script, style")) continue;
    seen += 1;
    const style = getComputedStyle(node);
    const ink = rgba(node.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(ink), light(ground(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push([ratio, walker.currentNode.data.trim().slice(0, 40)]);
  }
  return { seen, found };
}
"""


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_has_the_contrast_of_aa(page: Page, scheme: Any) -> None:
    """Each text has 4.5 to 1 or more against its ground (WCAG 2.2, 1.4.3), light and dark."""
    page.emulate_media(color_scheme=scheme)
    page.locator("button[data-opinion=agree]").first.click()
    measured = page.evaluate(CONTRAST)
    assert measured["seen"] > 300
    assert measured["found"] == []
    page.add_style_tag(content=":root { --quiet: #777 !important; --ink: #777 !important }")
    assert len(page.evaluate(CONTRAST)["found"]) > 100  # the measure would have seen it


@needs_chromium
def test_the_page_asks_for_nothing(browser: Browser, file: Path) -> None:
    """One file is read; nothing else is asked for, nothing is said on the console."""
    context = browser.new_context()
    opened, asked, said = context.new_page(), [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto(file.as_uri(), wait_until="networkidle")
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    assert said == []
    context.close()


def test_the_policy_lets_one_script_run(report: Report) -> None:
    """Nothing may be fetched, and a script runs by its hash alone: no other, whoever wrote it."""
    text = page_of(report)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; ")
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'", policy[1])
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)


@needs_chromium
def test_what_others_wrote_stays_text(page: Page) -> None:
    """Names of classes, scanners and notes that look like markup are shown as they are."""
    assert page.title() == "site-a: report on demo"
    assert page.locator("main script, main img:not([src^='data:'])").count() == 0
    assert page.get_by_text(HOSTILE).count() > 0
    assert page.locator("textarea").first.input_value() == NOTE
    assert page.locator("select[data-kind=group] option").all_inner_texts()[1:] == [
        f"scanner: {HOSTILE}", "scanner: plain", "sex: F", "sex: M"
    ]  # fmt: skip


def test_no_file_and_no_patient_is_named(report: Report) -> None:
    """Neither path nor keyed hash stands in the page; with names asked for, the file does."""
    text = page_of(report)
    assert "/secret/" not in text
    assert "patient-0" not in text
    view = report.tasks["eye"]
    named = replace(view, cases=[view.cases[0]._replace(name="/secret/<b>.png"), *view.cases[1:]])
    text = page_of(replace(report, tasks={**report.tasks, "eye": named}, named=True))
    assert "/secret/&lt;b&gt;.png" in text


def test_what_it_is_and_is_not_stands_on_it(report: Report) -> None:
    """Not a medical device, suppressed cells, unknown figures and another model are all said."""
    text = page_of(report)
    for words in (
        "Not a medical device",
        "suppressed",
        "after 2 rounds, another one",
        "the global model is better than alone",
        "undefined",
        "could not be read again",
        "does not fit the image",
        "<td>0.27</td><td>0.19</td><td>88</td>",
        "The export has no figures of all sites for this task",
    ):
        assert words in text, words


def test_figures_on_the_page_are_those_measured(report: Report) -> None:
    """The site's AUROC with its interval, and the federation's beside it, stand in one row."""
    auroc = report.tasks["eye"].figures.of_images.metrics["auroc"]
    row = re.search(r'<th scope="row">AUROC</th>(.*?)</tr>', page_of(report), re.DOTALL)
    assert row is not None
    assert f"{auroc.value:.3f}" in row[1]
    assert f"({auroc.low:.3f} to {auroc.high:.3f})" in row[1]
    assert "0.930" in row[1]
    assert "(0.900 to 0.960)" in row[1]


@pytest.mark.parametrize(
    ("together", "same"),
    [
        ((3, None), True),  # a history names no arrays
        ((3, MODEL), True),
        ((3, "0" * 64), False),  # as many rounds, and members that weigh otherwise
        ((3, ""), False),
        ((2, MODEL), False),
    ],
)
def test_figures_of_another_model_are_told_as_such(
    together: tuple[int, str | None], *, same: bool, report: Report
) -> None:
    """Beside figures of all sites stands a warning, unless they are of the very model shown."""
    assert report.federation is not None
    rounds, sha256 = together
    federation = report.federation._replace(model_round=rounds, sha256=sha256)
    told = page_of(dataclasses.replace(report, federation=federation))
    assert (f"after {rounds} rounds, another one than" not in told) == same
    own = dataclasses.replace(report.figures, model="personal")
    told = page_of(dataclasses.replace(report, federation=federation, figures=own))
    assert ("another one than" not in told) == (rounds == 3)


@needs_chromium
def test_cases_are_reached_and_judged_by_keys(page: Page) -> None:
    """Arrows go from case to case, a, d, u and n judge, Escape leaves the note with its letters."""
    first, second = page.locator(".case").nth(0), page.locator(".case").nth(1)
    first.focus()
    page.keyboard.press("ArrowRight")
    assert second.evaluate("one => one === document.activeElement")
    page.keyboard.press("a")
    assert second.locator("[data-opinion=agree]").get_attribute("aria-pressed") == "true"
    page.keyboard.press("d")
    assert second.locator("[data-opinion=agree]").get_attribute("aria-pressed") == "false"
    assert second.locator("[data-opinion=disagree]").get_attribute("aria-pressed") == "true"
    page.keyboard.press("u")
    page.keyboard.press("u")
    assert second.locator("[aria-pressed=true]").count() == 0
    page.keyboard.press("n")
    page.keyboard.type("a dub unusual")
    assert second.locator("textarea").input_value() == "a dub unusual"
    assert second.locator("[aria-pressed=true]").count() == 0
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowLeft")
    assert first.evaluate("one => one === document.activeElement")
    assert first.evaluate("one => getComputedStyle(one).outlineStyle") == "solid"


@needs_chromium
def test_every_control_has_a_name_and_every_image_words(page: Page) -> None:
    """Buttons, lists and fields are named for who cannot see them; images and charts have words."""
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, select, textarea, article, [role=region]")]
        .filter((one) => !(one.getAttribute("aria-label") || one.innerText.trim() ||
                           (one.labels && one.labels.length))).length"""
    )
    assert unnamed == 0
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.locator("figure.chart svg[role=img]:not([aria-label])").count() == 0
    assert page.locator("html[lang=en]").count() == 1


@needs_chromium
@pytest.mark.parametrize(
    ("kind", "value", "test"),
    [
        ("task", "lung", "one => one.dataset.task === 'lung'"),
        ("outcome", "false positive", "one => one.dataset.outcome === 'false positive'"),
        ("label", "healthy", "one => one.dataset.label === 'healthy'"),
        ("warning", "any", "one => one.dataset.places !== ''"),
        ("warning", "none", "one => one.dataset.places === ''"),
        ("group", "sex: M", "one => one.dataset.groups.includes('sex: M')"),
        ("opinion", "disagree", "one => one.dataset.opinion === 'disagree'"),
    ],
)
def test_a_filter_shows_what_fits_and_nothing_else(
    page: Page, kind: str, value: str, test: str
) -> None:
    """Cases that fit stay, others and their empty headings go; taken away, all are back."""
    total = page.locator(".case").count()
    page.locator(f"select[data-kind={kind}]").select_option(value)
    fit = f"all => all.filter({test}).length"
    expected = page.locator(".case").evaluate_all(fit)
    assert 0 < expected < total
    assert page.locator(".case:visible").count() == expected
    assert page.locator(".case:visible").evaluate_all(fit) == expected
    assert f"{expected} of {total}" in page.locator("#shown").inner_text()
    assert page.locator(".kind:visible:not(:has(.case:visible))").count() == 0
    page.locator(f"select[data-kind={kind}]").select_option("")
    assert page.locator(".case:visible").count() == total


@needs_chromium
def test_opinions_are_saved_as_the_feedback_that_is_read(page: Page, tmp_path: Path) -> None:
    """The file has study, network, site and every opinion; the page still knows them."""
    case = page.locator(".case").nth(2)
    case.locator("[data-opinion=unsure]").click()
    case.locator("select").select_option("healthy")
    case.locator("textarea").fill(HOSTILE)
    with page.expect_download() as waiting:
        page.locator("#save").click()
    assert waiting.value.suggested_filename == "feedback-demo-site-a.json"
    waiting.value.save_as(tmp_path / "saved.json")
    found = Feedback.model_validate_json((tmp_path / "saved.json").read_text())
    assert (found.study, found.model, found.site) == (STUDY, MODEL, "site-a")
    by_case = {one.case: one for one in found.cases}
    one = by_case[case.get_attribute("data-case") or ""]
    assert (one.opinion, one.label, one.note) == ("unsure", "healthy", HOSTILE)
    stored = by_case[page.locator(".case").nth(0).get_attribute("data-case") or ""]
    assert (stored.opinion, stored.note, stored.time) == ("disagree", NOTE, TIME)
    page.reload()
    assert page.locator(".case").nth(2).locator("textarea").input_value() == HOSTILE


@needs_chromium
def test_nonsense_in_the_browsers_store_does_no_harm(page: Page) -> None:
    """Whatever stands there, the page opens; what is no opinion is ignored."""
    key = page.evaluate("store")
    for content in ("{", "3", '[null, 3, {"case": 5}, {"case": "x", "time": "9"}]'):
        page.evaluate("([key, value]) => localStorage.setItem(key, value)", [key, content])
        page.reload()
        assert "1 of" in page.locator("#counted").inner_text()


@needs_chromium
def test_an_opinion_on_a_case_that_is_not_shown_is_not_lost(page: Page) -> None:
    """A later page may show fewer cases: what was noted before and never saved stays."""
    one = {
        "case": "f" * 32,
        "task": "eye",
        "opinion": "agree",
        "label": "",
        "note": "",
        "time": TIME,
    }
    content = json.dumps([one])
    page.evaluate("text => localStorage.setItem(store, text)", content)
    page.reload()
    page.locator("[data-opinion=unsure]").nth(1).click()
    assert one in json.loads(page.evaluate("localStorage.getItem(store)"))


@needs_chromium
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window(page: Page, width: int) -> None:
    """Only tables scroll sideways, within themselves (WCAG 2.2, 1.4.10)."""
    page.set_viewport_size({"width": width, "height": 900})
    page.locator("details").evaluate_all("all => all.forEach((one) => (one.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@needs_chromium
def test_paper_has_no_controls(page: Page) -> None:
    """Printed, there is nothing to press; opinions are words, and folded parts are open."""
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    for what in ("button", "select", "textarea", ".skip", "summary"):
        assert page.locator(f"{what}:visible").count() == 0, what
    assert "Clinician: disagree" in page.locator(".spoken:visible").first.inner_text()
    assert page.get_by_text("Not a medical device").first.is_visible()
    columns = page.locator(".cases").first.evaluate(
        "one => getComputedStyle(one).gridTemplateColumns"
    )
    assert len(columns.split()) == 3


def test_a_report_without_cases_is_a_page(report: Report) -> None:
    """Without test rows, federation or maps the page says so and has no controls."""
    figures, _ = measured(TWO, 0, 0)
    bare = TaskView(figures, None, "", "no grid", None, [], {}, 0, {"test": (0, 0)})
    plain = replace(report.figures, tasks={"eye": figures}, benefit={})
    text = page_of(Report(plain, None, {"eye": bare}, "gradcam", False))
    for words in ("No case is shown", "not known here", "no grid", "There are no test patients"):
        assert words in text
    assert json.dumps("controls") not in text
