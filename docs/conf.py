"""How `make docs` builds these pages: Sphinx, Markdown by MyST, the furo theme."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from pfl_lm import __version__

project = "pfl_lm"
copyright = "the pfl_lm authors, Apache-2.0"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
# Short names in signatures, such as Table, may be of several classes.
suppress_warnings = ["ref.python"]

html_theme = "furo"
html_title = f"pfl_lm {version}"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5cad", "color-brand-content": "#0b5cad"},
    "dark_css_variables": {"color-brand-primary": "#7db8f0", "color-brand-content": "#7db8f0"},
}

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

# The reference: every module, from its docstrings.
apidoc_modules = [
    {
        "path": "../pfl_lm",
        "destination": "reference",
        "exclude_patterns": ["**/interop/worker/*", "**/__main__.py"],
        "separate_modules": False,
        "module_first": True,
        "max_depth": 1,
        "automodule_options": {"members", "undoc-members"},
    }
]
toc_object_entries = False  # each page copies the whole tree: minutes, with every function in it
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"exclude-members": "__init__,__new__"}
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
# What an extra installs, and what only tensorflow-federated's environment has.
_OPTIONAL = (
    *("grpc", "grpc_tools", "google", "onnx", "onnxscript", "onnxruntime", "litert_torch"),
    *("ai_edge_litert", "ai_edge_quantizer", "executorch", "torchao", "coremltools", "tensorflow"),
    *("tensorflow_federated", "datasets", "pfl"),
)
autodoc_mock_imports = [name for name in _OPTIONAL if importlib.util.find_spec(name) is None]
napoleon_custom_sections = ["Guarantees", "Source"]
napoleon_use_rtype = False
napoleon_use_ivar = True

# The Markdown links to files of the clone, which are right there where somebody reads it. In the
# built pages a link to a module leads to its highlighted source, and these files are pages:
_ROOT = Path(__file__).resolve().parents[1]
_PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/LOG.md": "benchmark_log.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
    "pfl_lm/secagg/PROTOCOL.md": "protocol.md",
}
_INCLUDE = re.compile(r"```\{include\} (\S+)\n```\n")
_LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
myst_url_schemes = {
    "http": None,
    "https": None,
    "mailto": None,
    "source": {"url": "_modules/{{path}}.html"},
}


def follow_the_clone(app, name, content) -> None:
    """Replace an include by the file's text, and every link into the clone by one that works."""
    folder = Path(app.srcdir)
    if (included := _INCLUDE.fullmatch(content[0])) is not None:
        file = (folder / included[1]).resolve()
        content[0], folder = file.read_text(encoding="utf-8"), file.parent
    content[0] = _LINK.sub(lambda link: f"]({_target(link[1], folder)}{link[2] or ''})", content[0])


def _target(link: str, folder: Path) -> str:
    """Return where a link from a file in ``folder`` leads in the built pages."""
    path = (folder / link).resolve()
    if not path.is_relative_to(_ROOT):
        return link
    inside = path.relative_to(_ROOT).as_posix()
    if inside.startswith("pfl_lm/") and path.suffix == ".py":
        return f"source:{inside.removesuffix('.py').removesuffix('/__init__')}"
    return _PAGES.get(inside, os.path.relpath(path, _ROOT / "docs"))


def plain_docstring(app, what, name, obj, options, lines) -> None:
    """Keep what docstrings write for readers of the code: |x| and indented tables.

    reStructuredText would read |x| as a substitution. An indented block of a module's docstring
    is a table or a program, and is shown as it stands.
    """
    shown: list[str] = []
    for line in lines:
        indented = line.startswith("    ") and what == "module"
        if indented and not shown[-1].strip() and _starts_block(shown):
            shown += ["::", ""]
        shown.append(line if indented else re.sub(r"(?<!\\)\|", r"\\|", line))
    lines[:] = shown


def _starts_block(shown: list[str]) -> bool:
    before = next((line for line in reversed(shown) if line.strip()), "")
    return not before.startswith("    ") and not before.endswith("::")


def setup(app) -> None:
    app.connect("source-read", follow_the_clone)
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)
