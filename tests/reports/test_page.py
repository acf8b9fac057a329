import re
from html import escape
from html.parser import HTMLParser

import pytest
from synthetic import SPECIAL, fill, measured, record, records

from reports.command import read
from reports.page import draw, render

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Checker(HTMLParser):
    """Collects what a page must hold, and fails where tags do not match."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.headings, self.svgs = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if self.open and self.open[-1] == "svg":
            self.svgs[-1].append(tag)
        if tag == "svg":
            self.svgs.append([])
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def html(store_path):
    return render(draw(read(store_path)[0]))


@pytest.fixture(scope="module")
def page(html):
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    return checker


def test_ids_are_unique_and_all_references_resolve(page):
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    for _, attrs in page.tags:
        for name in attrs.get("aria-labelledby", "").split():
            assert name in ids
        if "href" in attrs:
            assert attrs["href"].startswith("#") and attrs["href"][1:] in ids
        for value in attrs.values():
            assert all(name in ids for name in re.findall(r"url\(#(.*?)\)", value or ""))


def test_nothing_comes_from_outside_and_nothing_runs(html, page):
    assert not re.search(r"https?:|src=|@import|<script|<link", html)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_a_screen_reader_finds_its_way(page):
    assert page.all("html") == [{"lang": "en"}]
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(page.headings, page.headings[1:], strict=False))
    assert len(page.svgs) == 8 and all(children[:2] == ["title", "desc"] for children in page.svgs)
    assert all(attrs["role"] == "img" for attrs in page.all("svg"))
    assert len(page.all("figure")) == len(page.all("figcaption")) == len(page.svgs)
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(attrs["scope"] in ("col", "row") for attrs in page.all("th"))


def test_every_record_and_its_command_appear(html):
    for r in records():
        assert escape(r.recipe, quote=False).replace("'", "&#39;") in html
        assert f"<code>{r.command}</code>" in html
    rows = re.findall(r'<tr>\n<th scope="row" class="text">(?:.|\n)*?</tr>', html)
    assert len(rows) == sum(r.status == "ok" for r in records()) - 1  # one is superseded
    assert all('href="#command-' in row and 'href="#origin-' in row for row in rows)
    assert "0.777" in html  # the superseded record, in its own table
    assert html.count("0.9+old") == 1


def test_reasons_and_fallbacks_are_told_as_text(html):
    assert SPECIAL not in html
    assert "group of 48 &lt; 64 &amp; &#34;short&#34; &lt;b&gt;bold&lt;/b&gt;" in html
    assert "LinAlgError: H is singular" in html
    assert "layer.0: damping 0.01 -&gt; 0.1<br>layer.1: dead channel 7" in html
    assert "not drawn: not finite" in html


def test_the_verdict_comes_first(html):
    assert (
        html.index("<h1>")
        < html.index("the fewest bits that keep KL below 0.05 nats: gptq at 3.25")
        < html.index("<h2")
    )


def test_a_store_of_skips_has_a_page_without_figures(tmp_path):
    skipped = record(status="skipped", reason=None, kl=None, ppl=None, nmse=None, hnmse=None, bpw=None, ppl_base=None)
    html = render(draw(read(fill(tmp_path / "s.db", [skipped]))[0]))
    assert "There is nothing to draw" in html and "no reason recorded" in html and "<svg" not in html


def test_namesakes_get_names_of_their_own(tmp_path):
    found = [
        measured("a/b", "rtn", 3, cell="1", model_sha256="1" * 64),
        measured("a/b", "rtn", 3, cell="2", model_sha256="2" * 64),
        measured("a-b", "rtn", 3, cell="3", model_sha256="2" * 64),
        measured("…", "rtn", 3, cell="4", model_sha256="2" * 64),
    ]
    drawn = draw(read(fill(tmp_path / "s.db", found))[0])
    assert [name for _, name, _ in drawn] == ["a-b", "a-b-2", "a-b-3", "model"]
    assert "a/b 11111111" in render(drawn)
