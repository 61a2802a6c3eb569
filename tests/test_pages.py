"""The pages of a run: they need nothing else, and their links lead somewhere."""

import re
import shutil

import pytest

from fetalseg_helpers import workspace
from fetalseg_helpers.running import lessons, pages


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """What a run leaves, as far as pages show it: two executed notebooks, a figure and a card."""
    folder = tmp_path_factory.mktemp("pages") / "run"
    (folder / "notebooks").mkdir(parents=True)
    for path in lessons.lessons()[1:3]:
        shutil.copy(path, folder / "notebooks")
    shutil.copytree(workspace.project_root() / "figures", folder / "figures")
    (folder / "model_card.md").write_text("# Model card\n\n## Scores\n\nDice 0.971\n", encoding="utf-8")
    assert pages.write_pages(folder) == folder / "index.html"
    return folder


def test_every_notebook_is_a_page_and_the_index_has_links_scores_and_figures(run_dir):
    index = (run_dir / "index.html").read_text(encoding="utf-8")
    for path in lessons.lessons():
        assert (run_dir / "notebooks" / f"{path.stem}.html").exists()
        assert f'href="notebooks/{path.stem}.html"' in index
    assert index.count("as stored") == len(lessons.lessons()) - 2 and "Dice 0.971" in index
    assert len(re.findall('<img[^>]*src="data:image/png', index)) == len(list((run_dir / "figures").glob("*.png")))


def test_links_and_anchors_of_the_pages_lead_somewhere(run_dir):
    checked = 0
    for page in [run_dir / "index.html", *(run_dir / "notebooks").glob("*.html")]:
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


def test_pages_fetch_nothing(run_dir):
    for page in (run_dir / "notebooks").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img|iframe)[^>]* src="(?!data:|")', text), page.name
        assert not re.search(r'<link[^>]* href="(?!data:)', text), page.name
        assert not re.search(r"import [^;]*https?:", text), page.name
