"""From a template to one HTML file that fetches nothing."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from markupsafe import Markup

_FOLDER = Path(__file__).parent


def render(template: Path, content: Mapping[str, Any], *styles: str) -> str:
    """Fill a page's template; text is escaped, a name that is not given is an error.

    The template may extend ``base.html`` and import ``figures.html`` of this folder. It may show
    ``style`` (the shared theme, then ``styles`` of this folder, then the style sheet beside the
    template) and ``script`` (the cross-hair over charts).
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, _FOLDER]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    sheets = [_FOLDER / name for name in ("theme.css", *styles)]
    sheets.append(template.with_suffix(".css"))
    style = "".join(path.read_text(encoding="utf-8") for path in sheets)
    script = (_FOLDER / "crosshair.js").read_text(encoding="utf-8")
    shared = {"style": Markup(style), "script": Markup(script)}
    return environment.get_template(template.name).render(shared | dict(content))


def framed(page: str, height: int) -> str:
    """Return a whole page as a frame within another one."""
    return (
        f'<iframe srcdoc="{escape(page, quote=True)}" style="width: 100%; height: {height}px; '
        'border: 0" sandbox></iframe>'
    )
