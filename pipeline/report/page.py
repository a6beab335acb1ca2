"""Render the report: Jinja fills one template; the page needs nothing but itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from pipeline.comparison import tables
from pipeline.labels import method_label

TEMPLATE = "report.html.jinja"


def render(content: Mapping[str, Any]) -> str:
    """The page for the content that `content.gather` returns; a name that is missing there is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "label": method_label,
        "score": tables.score,
        "beside": tables.beside,
        "summary": tables.plus_minus,
        "markdown": _html,
    }
    environment.tests["convincing"] = tables.convincing
    return environment.get_template(TEMPLATE).render(content)


def _html(text: str) -> Markup:
    """Markdown of this project as HTML, without its title, its headings below the page's; HTML in it is text."""
    body = text.partition("\n")[2].replace("\n## ", "\n### ")
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(body))
