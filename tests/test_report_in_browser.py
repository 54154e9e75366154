"""The report in a browser: headless Chromium opens it from file://, as a mail attachment is opened.

Skipped where neither playwright nor a Chromium on the PATH is to be had.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aggregate.report import report
from aggregate.run import Run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

HOSTILE = ("<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "=cmd|' /C calc'!A0")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SCANS = 24


@dataclass
class Opened:
    """A page with what it said and asked for."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on the PATH")
    with playwright.sync_playwright() as p:
        running = p.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 24 scans, three of them and their patients with hostile names, and two endpoints."""
    place = Path(__file__).parent / "bench" / "report.py"
    spec = importlib.util.spec_from_file_location("bench_report", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("browser")
    labels = {"<b>grade</b>": ["=low", "mid", "<i>high"] * (SCANS // 3)}
    target = ["sick", "<b>grade</b>"]
    found: Path = module.write_run(folder, scans=SCANS, matrix=32, names=HOSTILE, labels=labels, target=target)
    return found


@pytest.fixture(scope="module")
def place(run: Path) -> Path:
    """The page with its ids shown, so that they can do their worst, and with pictures."""
    return report(run, scans=run.parent / "scans", out=run.parent / "page.html", show_ids=True)


@contextmanager
def opened(browser: Any, place: Path, **settings: Any) -> Iterator[Opened]:
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
    page = context.new_page()
    seen = Opened(page)
    page.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("requestfailed", lambda request: seen.blocked.append(request.url) if "csp" in request.failure else None)
    page.on("dialog", lambda dialog: (seen.dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(place.as_uri())
    yield seen
    context.close()


def column(page: Any, number: int) -> list[str]:
    """The texts of a column of the case list that are shown."""
    script = """n => Array.from(document.querySelectorAll('#r1-caselist > tbody')).filter(b => !b.hidden)
        .map(b => b.rows[0].cells[n].innerText.trim())"""
    return [str(text) for text in page.evaluate(script, number)]


def tab_to(page: Any, selector: str, most: int = 300) -> None:
    """Presses Tab until the focus is on it."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("s => document.activeElement.matches(s)", selector):
            return
    raise AssertionError(f"{most} times Tab do not lead to {selector}")


def wait_until(page: Any, condition: str) -> None:
    """Until the condition holds. Playwright's own waiting evaluates text inside the page, which its policy forbids."""
    for _ in range(100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never came true: {condition}")


def test_it_opens_without_asking_for_anything_and_without_an_error(browser: Any, place: Path) -> None:
    with opened(browser, place) as seen:
        for button in seen.page.locator("button.open").all()[:3]:
            button.click()
        wait_until(seen.page, "Array.from(document.images).filter(i => i.offsetParent).every(i => i.complete)")
        assert seen.page.evaluate(
            "Array.from(document.images).filter(i => i.offsetParent).map(i => i.naturalWidth).every(w => w > 0)"
        )
        assert seen.page.locator("tr.panel:visible img").count() >= 4
    assert [url for url in seen.requests if not url.startswith("data:")] == [place.as_uri()]
    assert seen.errors == []
    assert seen.dialogs == []


def test_it_may_not_load_even_if_something_in_it_tried(browser: Any, place: Path) -> None:
    script = """make => new Promise(resolve => {
        document.addEventListener('securitypolicyviolation', event => resolve(event.effectiveDirective));
        const element = document.createElement(make);
        element.src = 'https://example.invalid/x';
        document.body.append(element);
        setTimeout(() => resolve('allowed'), 3000);
    })"""
    with opened(browser, place) as seen:
        for tag, directive in (("img", "img-src"), ("script", "script-src-elem"), ("iframe", "frame-src")):
            assert seen.page.evaluate(script, tag) == directive
        seen.page.wait_for_timeout(100)
        by_hand = """() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';
            document.body.append(s); return window.ran === undefined; }"""
        assert seen.page.evaluate(by_hand)
    outside = [url for url in seen.requests if url.startswith("http")]
    assert sorted(outside) == sorted(seen.blocked)  # asked for by this test, and stopped before the network


def test_hostile_ids_and_names_stay_text(browser: Any, place: Path) -> None:
    with opened(browser, place) as seen:
        page = seen.page
        assert set(HOSTILE) <= set(column(page, 0)) & set(column(page, 1))
        assert "<b>grade</b>" in column(page, 2)
        assert (
            page.evaluate("document.querySelectorAll('[onerror], main script, main b > b, td i:not([style])').length")
            == 0
        )
        assert page.evaluate("document.scripts.length") == 1
        page.locator("select[name=truth]").select_option("<i>high")
        assert set(column(page, 3)) == {"<i>high"}
        page.get_by_role("searchbox").fill("<img")
        assert set(column(page, 0)) <= {HOSTILE[0]}
    assert seen.dialogs == []


def test_columns_sort_by_number_and_by_text_and_rows_keep_their_panels(browser: Any, place: Path) -> None:
    with opened(browser, place) as seen:
        page = seen.page
        head = page.locator("#r1-caselist > thead th", has_text="score")
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        scores = [float(text) for text in column(page, 5)]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == 2 * SCANS
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "ascending"
        assert [float(text) for text in column(page, 5)] == sorted(scores)
        name = page.locator("#r1-caselist > thead th", has_text="scan").first
        name.get_by_role("button").click()
        assert head.get_attribute("aria-sort") is None
        together = """Array.from(document.querySelectorAll('tr[data-panel]')).every(row => {
            const panel = row.nextElementSibling;
            const name = panel.querySelector('summary').textContent;
            return panel.id === row.dataset.panel && name === 'Slices of scan ' + row.cells[0].innerText.trim();
        })"""
        assert page.evaluate(together)
        assert page.locator("tr.panel button.sort").count() == 0


def test_filters_narrow_the_list_and_say_how_many_are_left(browser: Any, place: Path) -> None:
    with opened(browser, place) as seen:
        page = seen.page
        form = page.locator("form.filter")
        status = form.locator("output")
        assert status.inner_text() == f"{2 * SCANS} of {2 * SCANS} shown"
        form.locator("select[name=outcome]").select_option("wrong")
        wrong = column(page, 4)
        assert wrong
        assert all(text.endswith("wrong") for text in wrong)
        assert status.inner_text() == f"{len(wrong)} of {2 * SCANS} shown"
        form.locator("select[name=endpoint]").select_option("sick")
        assert set(column(page, 2)) == {"sick"}
        page.get_by_role("searchbox").fill("scan0005")
        assert set(column(page, 0)) <= {"scan0005"}
        form.get_by_role("button", name="Clear").click()
        wait_until(page, f"document.querySelector('form.filter output').textContent.startsWith('{2 * SCANS} ')")


def test_the_keyboard_alone_is_enough(browser: Any, place: Path) -> None:
    with opened(browser, place) as seen:
        page = seen.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        tab_to(page, "[data-csv='r1-metrics']")
        tab_to(page, "select[name=outcome]")
        page.keyboard.press("ArrowDown")
        assert set(
            page.eval_on_selector_all("#r1-caselist > tbody:not([hidden])", "b => b.map(x => x.dataset.outcome)")
        ) == {"wrong"}
        tab_to(page, "[aria-label=Cases]")  # the box that scrolls
        tab_to(page, "th button.sort")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.closest('th').getAttribute('aria-sort')") == "ascending"
        tab_to(page, "button.open")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        panel = page.locator("#" + page.evaluate("document.activeElement.getAttribute('aria-controls')"))
        assert panel.is_hidden()
        page.keyboard.press("Space")
        assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
        assert panel.is_visible()
        page.keyboard.press("Enter")
        assert panel.is_hidden()


def test_tables_download_as_csv_that_no_spreadsheet_runs(browser: Any, place: Path, run: Path) -> None:
    with opened(browser, place) as seen:
        page = seen.page

        def downloaded(table: str) -> list[list[str]]:
            with page.expect_download() as waiting:
                page.locator(f"[data-csv='{table}']").click()
            text = Path(waiting.value.path()).read_text(encoding="utf-8-sig")
            return list(csv.reader(io.StringIO(text)))

        cases = downloaded("r1-caselist")
        assert cases[0][:6] == ["scan", "patient", "endpoint", "true", "called", "score"]
        assert len(cases) == 1 + 2 * SCANS
        names = {row[0] for row in cases[1:]}
        assert {HOSTILE[0], HOSTILE[1], "'" + HOSTILE[2]} <= names
        assert {row[3] for row in cases[1:]} == {"0", "1", "'=low", "mid", "<i>high"}
        for row in cases:
            assert not any(cell.startswith(("=", "+", "@", "\t")) for cell in row)
            assert not any(cell.startswith("-") and not cell.lstrip("-").replace(".", "").isdigit() for cell in row)
        metrics = downloaded("r1-metrics")
        assert len({len(row) for row in metrics}) == 1
        of = dict(zip(metrics[0], next(r for r in metrics if r[:3] == ["sick", "this run", "AUROC"]), strict=True))
        exact = Run(run).metrics.filter(endpoint="sick", metric="auroc", estimator="pooled")["estimate"][0]
        assert float(of["pooled"]) == exact
    assert seen.errors == []


def test_tables_can_be_copied(browser: Any, place: Path) -> None:
    with opened(browser, place, permissions=["clipboard-read", "clipboard-write"]) as seen:
        seen.page.locator("[data-copy='r1-caselist']").click()
        seen.page.get_by_text("Copied").wait_for()
        text = seen.page.evaluate("navigator.clipboard.readText()")
    lines = [line.split("\t") for line in text.split("\n")]
    assert len(lines) == 1 + 2 * SCANS
    assert "'" + HOSTILE[2] in {line[0] for line in lines}


def test_it_fits_360_pixels_and_only_tables_scroll(browser: Any, place: Path) -> None:
    with opened(browser, place, viewport={"width": 360, "height": 740}) as seen:
        page = seen.page
        page.locator("button.open").first.click()
        for summary in page.locator("details > summary:visible").all():
            summary.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        wide = page.evaluate(
            """Array.from(document.querySelectorAll('main *'))
                .filter(e => e.getClientRects().length && !e.closest('.box') && !e.closest('svg'))
                .filter(e => e.getBoundingClientRect().right > 360.5).map(e => e.outerHTML.slice(0, 80))"""
        )
        assert wide == []
        small = page.evaluate(
            """Array.from(document.querySelectorAll('p, li, td, th, dd, dt, a, button, label, output'))
                .filter(e => parseFloat(getComputedStyle(e).fontSize) < 12).length"""
        )
        assert small == 0
        picture = page.locator("tr.panel:visible img").first.bounding_box()
        assert picture["width"] >= 100
        assert picture["x"] + picture["width"] <= 360


CONTRAST = """() => {
    const luminance = colour => {
        const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = element => {
        for (let e = element; e; e = e.parentElement) {
            const colour = getComputedStyle(e).backgroundColor;
            if (colour !== 'rgba(0, 0, 0, 0)' && colour !== 'transparent') return colour;
        }
        return 'rgb(255, 255, 255)';
    };
    let worst = 21, where = '';
    for (const e of document.querySelectorAll('main *:not(svg *), header *')) {
        const hasText = Array.from(e.childNodes).some(n => n.nodeType === 3 && n.data.trim());
        if (!e.getClientRects().length || !hasText) continue;
        const [a, b] = [luminance(getComputedStyle(e).color), luminance(ground(e))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < worst) { worst = ratio; where = e.outerHTML.slice(0, 120); }
    }
    return [worst, where, luminance(ground(document.body))];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_light_and_in_dark(browser: Any, place: Path, scheme: str) -> None:
    with opened(browser, place, color_scheme=scheme) as seen:
        seen.page.locator("button.open").first.click()
        worst, where, ground = seen.page.evaluate(CONTRAST)
        assert worst >= 4.5, where  # WCAG 2.2, 1.4.3
        assert (ground > 0.5) == (scheme == "light")
        ink = seen.page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")
        assert ink == seen.page.evaluate("getComputedStyle(document.body).color")


def test_without_scripts_it_is_a_page_of_plain_tables(browser: Any, place: Path) -> None:
    with opened(browser, place, java_script_enabled=False) as seen:
        page = seen.page
        assert page.locator(".tools:visible, form.filter:visible, th button").count() == 0
        assert page.locator("#r1-caselist > tbody > tr:first-child:visible").count() == 2 * SCANS
        summary = page.locator("tr.panel summary").first
        assert page.locator("tr.panel img:visible").count() == 0
        summary.focus()
        page.keyboard.press("Enter")
        assert page.locator("tr.panel img:visible").count() >= 1


def test_it_prints_on_paper_without_its_controls(browser: Any, place: Path) -> None:
    with opened(browser, place, color_scheme="dark") as seen:
        page = seen.page
        page.locator("button.open").first.click()
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 720, "height": 1050})  # A4 within its margins
        assert page.locator("nav:visible, .tools:visible, form.filter:visible").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 720
        boxes = "Array.from(document.querySelectorAll('.box')).every(b => b.scrollHeight <= b.clientHeight + 1)"
        assert page.evaluate(boxes)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.pdf(format="A4")[:5] == b"%PDF-"
