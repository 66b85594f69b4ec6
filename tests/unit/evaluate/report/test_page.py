"""The page: nothing from outside, the right numbers, and a script that works in a real browser."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from docs.browser import NAMES
from mlembed_core.artifacts import Workspace
from mlembed_core.evaluate.report.origin import Origin
from mlembed_core.evaluate.report.page import render

BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
# Sorts by average with a click, filters by setting and size, and leaves what it sees in the document.
ACT = """
<script>
const table = document.querySelector("table.submodels"), form = document.querySelector("form.filters");
const shown = () => [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.dataset.key).join(" ");
table.tHead.rows[0].cells[2].querySelector("button").click();
document.body.dataset.sorted = shown();
table.tHead.rows[0].cells[2].querySelector("button").click();
document.body.dataset.reversed = shown();
form.elements.setting.value = "3d";
form.elements.mb.value = "0.0007";
form.dispatchEvent(new Event("input"));
document.body.dataset.filtered = shown();
document.querySelector('.point[data-key="3d/l1-d16-r16"]').dispatchEvent(new MouseEvent("click"));
document.body.dataset.marked = document.querySelector("tr.on").dataset.key;
document.body.dataset.visible = [...document.querySelectorAll(".frontier .view")].filter((view) => view.offsetHeight).length;
</script>
"""


@pytest.fixture(scope="module")
def page(finished: Workspace) -> str:
    return (finished.reports / "index.html").read_text(encoding="utf-8")


def test_nothing_comes_from_outside(page: str) -> None:
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    links = re.findall(r'\b(?:src|href|action|data|srcset|poster)="([^"]*)"', page)
    assert links
    assert all(link.startswith(("#", "data:,")) for link in links)


def test_ids_are_unique(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))


def test_it_says_plainly_where_a_control_wins(page: str) -> None:
    text = text_of(page)
    assert (
        "Char TF-IDF scores higher than both uncut models on average (0.525 to 0.500) and on 1 of 2 tasks: Beta search (0.700 to 0.600)"
        "; higher than 3d alone on 1 of 2 tasks: Alpha bitext (0.350 to 0.300)." in text
    )
    assert "BM25 scores higher than both uncut models nowhere; higher than 3d alone on 1 of 2 tasks: Beta search (0.550 to 0.500)." in text
    assert "Nowhere does the untrained model score higher than an uncut model." in text
    assert "▲ 0.700" in text


def test_it_compares_equal_cuts(page: str) -> None:
    # Differences at equal cuts: dim 4 .10, 1 layer .10, rank 4 .10, 1 layer and dim 4 .30.
    assert (
        "Cut in the same way, 3d scores higher than baseline at 4 of 4 cuts; the largest difference is at 1 layer · dim 4, "
        "0.400 to 0.100. Uncut it is 0.400 to 0.500." in text_of(page)
    )


def test_it_names_the_smallest_that_is_good_enough(page: str) -> None:
    # 90 % of .50 is .45: 3d with one layer, 600 bytes.
    assert 'mlembed search "what you look for" --model models/3d --layers 1' in text_of(page)
    assert "The smallest with at least 90 % of that has 600 B: 3d, 1 layer, average 0.450." in text_of(page)


def test_names_from_the_parameters_cannot_break_the_page(made_up: Any, compare: Any) -> None:
    made_up.controls["<b>&amp;"] = made_up.controls["char_tfidf"]
    page = render(compare(made_up.write()), {}, Origin())
    assert "<b>" not in page
    assert "&lt;b&gt;" in page


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH; install one to have the page's script tested")
def test_a_browser_sorts_filters_and_marks(page: str, tmp_path: Path) -> None:
    assert BROWSER is not None
    copy = tmp_path / "page.html"
    copy.write_text(page.replace("</body>", ACT + "</body>"), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    done = subprocess.run(
        [BROWSER, *flags.split(), "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", copy.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "Uncaught" not in done.stderr
    body = re.search(r"<body[^>]*>", done.stdout)
    assert body is not None
    seen = dict(re.findall(r'data-([a-z]+)="([^"]*)"', body[0]))
    order = seen["sorted"].split()
    assert order[:2] == ["baseline/l2-d16-r16", "3d/l1-d16-r16"]
    assert order[-1] == "baseline/l1-d4-r16"
    assert seen["reversed"].split()[0] == "baseline/l1-d4-r16"
    assert sorted(seen["filtered"].split()) == ["3d/l1-d16-r16", "3d/l1-d4-r16", "3d/l2-d16-r4"]
    assert seen["marked"] == "3d/l1-d16-r16"
    assert seen["visible"] == "1"
    assert "3 of 10" in done.stdout
