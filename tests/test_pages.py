"""The pages of a run: they need nothing else, and their links lead somewhere."""

import re

from fetalseg_helpers.running import lessons


def test_every_notebook_is_a_page_and_the_index_has_links_scores_and_figures(paged_run):
    index = (paged_run / "index.html").read_text(encoding="utf-8")
    for path in lessons.lessons():
        assert (paged_run / "notebooks" / f"{path.stem}.html").exists()
        assert f'href="notebooks/{path.stem}.html"' in index
    assert index.count("as stored") == len(lessons.lessons()) - 2 and "Dice 0.971" in index
    assert len(re.findall('<img[^>]*src="data:image/png', index)) == len(list((paged_run / "figures").glob("*.png")))


def test_links_and_anchors_of_the_pages_lead_somewhere(paged_run):
    checked = 0
    for page in [paged_run / "index.html", *(paged_run / "notebooks").glob("*.html")]:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r'<a [^>]*href="([^"#]*(?:#[^"]*)?)"', text):
            if target.startswith(("http", "mailto", "data:")) or target == "":
                continue
            name, _, anchor = target.partition("#")
            place = (page.parent / name).resolve() if name else page
            assert place.exists(), (page.name, target)
            if anchor and place.suffix == ".html" and "GLOSSARY" in place.name:
                assert f'id="{anchor}"' in place.read_text(encoding="utf-8"), (page.name, target)
            checked += 1
    assert checked > 200


def test_pages_fetch_nothing(paged_run):
    for page in (paged_run / "notebooks").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img|iframe)[^>]* src="(?!data:|")', text), page.name
        assert not re.search(r'<link[^>]* href="(?!data:)', text), page.name
        assert not re.search(r"import [^;]*https?:", text), page.name
