"""Configuration of the site: python -m sphinx -W docs docs/_build/html

SKDEEPFEAT_EXAMPLE_SIZE=60 in the environment runs the gallery on fewer
images.
"""

from sphinx_gallery.sorting import FileNameSortKey

import skdeepfeat

project = "skdeepfeat"
author = "The skdeepfeat developers"
release = version = skdeepfeat.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autosummary",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates", "sg_execution_times.rst"]
# The sort key of the gallery is a class, which no cache can hold.
suppress_warnings = ["config.cache"]
nitpicky = False

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist"]
myst_heading_anchors = 3
autosummary_generate = True
numpydoc_show_class_members = False
numpydoc_validation_checks = {
    "GL07",
    "GL08",
    "PR01",
    "PR02",
    "PR03",
    "RT01",
}
numpydoc_validation_exclude = {r"\._", r"set_.*_request$"}

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": "/plot_",
    "within_subsection_order": FileNameSortKey,
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "matplotlib_animations": False,
    "doc_module": ("skdeepfeat",),
    "reference_url": {"skdeepfeat": None},
    "backreferences_dir": "generated/gallery",
}

html_theme = "pydata_sphinx_theme"
html_title = "skdeepfeat"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
# These pages have no section to navigate; their tables use the room.
html_sidebars = {
    "install": [],
    "first_features": [],
    "coming_from": [],
    "mini": [],
    "performance": [],
    "changelog": [],
    "contributing": [],
    "architecture": [],
    "glossary": [],
}
toc_object_entries_show_parents = "hide"
html_theme_options = {
    "show_prev_next": True,
    "navigation_with_keys": False,
    "header_links_before_dropdown": 4,
    "secondary_sidebar_items": ["page-toc"],
}
