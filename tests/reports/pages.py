"""What every page must be: well-formed, self-contained, and readable without seeing it."""

import re
from html.parser import HTMLParser

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


def parsed(html):
    """The page's tags; fails where they do not match."""
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    return checker


def refers_to_itself(page, others=()):
    """Every identifier is there once, and every reference leads to one, or to one of the `others`."""
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    for _, attrs in page.tags:
        for name in attrs.get("aria-labelledby", "").split():
            assert name in ids
        if "href" in attrs and attrs["href"] not in others:
            assert attrs["href"].startswith("#") and attrs["href"][1:] in ids
        for value in attrs.values():
            assert all(name in ids for name in re.findall(r"url\(#(.*?)\)", value or ""))


def stands_alone(html, page):
    """Nothing comes from outside, and nothing runs."""
    assert not re.search(r"https?:|src=|@import|<script|<link", html)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def can_be_heard(page, n_figures):
    """A screen reader finds its way: headings in order, figures described, tables with captions and scopes."""
    assert page.all("html") == [{"lang": "en"}]
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(page.headings, page.headings[1:], strict=False))
    assert len(page.svgs) == n_figures and all(children[:2] == ["title", "desc"] for children in page.svgs)
    assert all(attrs["role"] == "img" for attrs in page.all("svg"))
    assert len(page.all("figure")) == len(page.all("figcaption")) == len(page.svgs)
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(attrs["scope"] in ("col", "row") for attrs in page.all("th"))
