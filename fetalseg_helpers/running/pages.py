"""A run as pages that any browser shows without Jupyter: each notebook, the glossary, and an index with the scores."""

import re

import nbformat
from nbconvert import HTMLExporter

from fetalseg_helpers.workspace import project_root, run_folder, write_text

INDEX = "# A run of the course\n\n{links}\n\n{figures}\n\n{card}"


def write_pages(run_dir):
    """Write the executed notebooks of a run and the glossary as self-contained pages beside them, and `index.html`.

    The index, whose path is returned, has links to the pages, the figures of the run, and its model card with scores.
    """
    folder = run_folder(run_dir)
    done = [path for path in sorted((folder / "notebooks").glob("[0-9]*.ipynb")) if not path.stem.endswith("_failed")]
    for path in done:
        write_page(nbformat.read(path, as_version=4), path.with_suffix(".html"))
    glossary = (project_root() / "notebooks" / "GLOSSARY.md").read_text(encoding="utf-8")
    write_page(of_text(glossary), folder / "notebooks" / "GLOSSARY.html")
    links = [f"- [{path.stem[:2]} {path.stem[3:].replace('_', ' ')}](notebooks/{path.stem}.html)" for path in done]
    figures = [f"![{path.stem}](figures/{path.name})" for path in sorted((folder / "figures").glob("*.png"))]
    card = (folder / "model_card.md").read_text(encoding="utf-8").replace("\n#", "\n##")
    text = INDEX.format(links="\n".join(links), figures="\n\n".join(figures), card=card[1:])
    write_page(of_text(text), folder / "index.html")
    return folder / "index.html"


def of_text(text):
    """A notebook that holds one text."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])


def write_page(notebook, path):
    """Write a notebook as a page that needs no other file and no network; its links lead to the other pages."""
    outside = dict.fromkeys(["mathjax_url", "require_js_url", "jquery_url", "widget_renderer_url"], "")
    exporter = HTMLExporter(embed_images=True, **outside)
    about = {"metadata": {"name": path.stem, "path": str(path.parent)}}
    page, _ = exporter.from_notebook_node(notebook, about)
    page = re.sub(r'(<h\d id=")([^"]+)', lambda found: found[1] + found[2].lower(), page)  # as the links have them
    write_text(path, re.sub(r'(href="[\w/]+)\.(?:ipynb|md)(?=[#"])', r"\1.html", page))
