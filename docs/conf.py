"""How Sphinx turns the staged book (tools/docs.py) into pages that ask nothing of any network."""

import inspect
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import docs as book_docs

project, author = "gpovae", "The gpovae authors"
version = release = book_docs.SETTINGS["version"]
copyright = f"{author}, MIT licence"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
napoleon_google_docstring = False
default_role = "code"  # in docstrings, `name` is code

# pages
html_theme = "furo"
html_title = f"gpovae {version}"
html_static_path = [str(Path(__file__).parent / "static")]
html_css_files = ["book.css"]
html_theme_options = dict(navigation_with_keys=True)
html_show_sourcelink = html_copy_source = False
html_show_search_summary = False  # a page that was opened as a file may not read another
pygments_style, pygments_dark_style = "tango", "github-dark"

# notebooks: as they are stored
nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # tables in outputs
nb_output_stderr = "remove"
nb_merge_streams = True
nb_ipywidgets_js = {}  # no widgets, hence no scripts from elsewhere
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type", "misc.highlighting_failure"]

# mathematics: the parts of MathJax that a page loads, copied beside the pages
MATHJAX = (
    Path(next(iter(find_spec("sphinx-mathjax-offline").submodule_search_locations)))
    / "static/mathjax"
)
mathjax_path = "mathjax/tex-chtml.js"

# API: signatures and numpydoc docstrings
autodoc_default_options = {
    "members": True,
    "undoc-members": True,
    "member-order": "bysource",
    "exclude-members": "__weakref__",
}
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_typehints_description_target = "all"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 100


def no_claim(app, what, name, obj, options, lines):
    "The docstring of a module is the claim of its chapter, which stands above."
    if what == "module":
        lines.clear()


def no_self(app, what, name, *_):
    "A patched method says what `self` is; the page says it by where the method stands."
    app.env.current_document.autodoc_annotations.get(name, {}).pop("self", None)


def skip(app, what, name, obj, *_):
    "Fields of named tuples say nothing by themselves."
    return True if (inspect.getdoc(obj) or "").startswith("Alias for field number") else None


def copy_mathjax(app, exception):
    if exception or app.builder.format != "html":
        return
    to = Path(app.outdir) / "_static/mathjax"
    for part in (
        "tex-chtml.js",
        "a11y/assistive-mml.js",
        "input/tex/extensions",
        "output/chtml/fonts",
    ):
        (to / part).parent.mkdir(parents=True, exist_ok=True)
        if (MATHJAX / part).is_dir():
            shutil.copytree(MATHJAX / part, to / part, dirs_exist_ok=True)
        else:
            shutil.copy(MATHJAX / part, to / part)


def setup(app):
    app.connect("autodoc-process-docstring", no_claim)
    app.connect("autodoc-process-signature", no_self, priority=900)
    app.connect("autodoc-skip-member", skip)
    app.connect("build-finished", copy_mathjax)
