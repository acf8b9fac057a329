import re
from html import escape

import pytest
from pages import can_be_heard, parsed, refers_to_itself, stands_alone
from synthetic import SPECIAL, fill, measured, record, records

from reports import kernels_page
from reports.command import read
from reports.page import draw, render


@pytest.fixture(scope="module")
def html(store_path):
    return render(draw(read(store_path)[0]))


@pytest.fixture(scope="module")
def page(html):
    return parsed(html)


def test_the_page_refers_to_itself_stands_alone_and_can_be_heard(html, page):
    refers_to_itself(page)
    stands_alone(html, page)
    can_be_heard(page, 10)


def test_every_record_and_its_command_appear(html):
    for r in records():
        assert escape(r.recipe, quote=False).replace("'", "&#39;") in html
        assert f"<code>{r.command}</code>" in html
    rows = re.findall(r'<tr>\n<th scope="row" class="text">(?:.|\n)*?</tr>', html)
    assert len(rows) == sum(r.status == "ok" for r in records()) - 1  # one is superseded
    assert all('href="#command-' in row and 'href="#origin-' in row for row in rows)
    assert "0.777" in html  # the superseded record, in its own table
    assert html.count("0.9+old") == 1


def test_tokens_per_second_have_a_column_where_there_are_any(tmp_path):
    found = [record(tokens_per_second=123.4), record(cell="b", recipe="Rtn(bits=4)", bits=4)]
    html = render(draw(read(fill(tmp_path / "s.db", found))[0]), beside={kernels_page.PAGE: kernels_page.LINK})
    row, heading = "<td>123.4</td><td>1.5</td>", '<th scope="col">tokens per second</th>'
    assert html.count(heading) == html.count(row) == html.count("<td>–</td><td>1.5</td>") == 1
    assert 'href="kernels.html#models"' in html
    refers_to_itself(parsed(html), others=("kernels.html", "kernels.html#models"))
    untimed = render(draw(read(fill(tmp_path / "t.db", [record()]))[0]), beside={kernels_page.PAGE: kernels_page.LINK})
    assert heading not in untimed and "#models" not in untimed


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
