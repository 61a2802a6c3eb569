"""A run as pages that any browser shows without Jupyter: each notebook, the glossary, and an index with the scores."""

import os
import re

import nbformat
from nbconvert import HTMLExporter

from fetalseg_helpers.running.lessons import lessons
from fetalseg_helpers.workspace import project_root, run_folder, write_text

OUTSIDE = dict.fromkeys(["mathjax_url", "require_js_url", "jquery_url", "widget_renderer_url"], "")  # not fetched


def write_pages(run_dir):
    """Write every notebook and the glossary as pages into `notebooks/` of a run, and `index.html`; returns its path.

    A notebook that the run has not executed is shown as it is stored. The index has the figures and the model card.
    """
    folder, links = run_folder(run_dir), []
    for path in lessons():
        own = folder / "notebooks" / path.name
        done = own.exists()
        write_page(nbformat.read(own if done else path, as_version=4), own.with_suffix(".html"))
        links.append(f"- [{path.stem.replace('_', ' ')}](notebooks/{path.stem}.html){'' if done else ', as stored'}")
    glossary = (project_root() / "notebooks" / "GLOSSARY.md").read_text(encoding="utf-8")
    write_text_page(glossary.replace("](../figures/", "](figures/"), folder / "notebooks" / "GLOSSARY.html")
    figures = [f"![{path.stem}](figures/{path.name})" for path in sorted((folder / "figures").glob("*.png"))]
    card = (folder / "model_card.md").read_text(encoding="utf-8").replace("\n#", "\n##")[1:]
    write_text_page("\n\n".join(["# A run of the course", "\n".join(links), card, *figures]), folder / "index.html")
    return folder / "index.html"


def slug(title):
    """The anchor of a title as GitHub names it, and so all links."""
    return re.sub(r"[^\w-]", "", title.lower())


def write_text_page(text, path):
    """Write Markdown as a page."""
    write_page(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)]), path)


def write_page(notebook, path):
    """Write a notebook as one file that needs no network; its links lead to the other pages, or into the project."""
    home = path.parent if path.name == "index.html" else project_root()  # below which the pictures lie
    about = {"metadata": {"name": path.stem, "path": str(home)}}
    page, _ = HTMLExporter(template_name="classic", embed_images=True, **OUTSIDE).from_notebook_node(notebook, about)
    page = re.sub(r'<script (?:src=""|type="module")>.*?</script>', "", page, flags=re.DOTALL)  # diagrams: from outside
    page = re.sub(r'(<h\d id="|anchor-link" href="#)([^"]+)', lambda found: found[1] + slug(found[2]), page)
    page = re.sub(r'(href="(?:\d\d_\w+|GLOSSARY))\.(?:ipynb|md)', r"\1.html", page)
    project = os.path.relpath(project_root() / "notebooks", path.parent).replace(os.sep, "/")
    write_text(path, re.sub(r'href="(?=[\w./]+\.(?:ipynb|md)["#])', f'href="{project}/', page))
