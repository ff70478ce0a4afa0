"""Configuration of Sphinx."""

from pathlib import Path

import torch_func_compat
from torch_func_compat._capabilities import CAPABILITIES

project = "torch-func-compat"
author = "The torch-func-compat developers"
copyright = author
release = version = torch_func_compat.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_generated"]
html_theme = "furo"
html_title = project

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signatures are upstream's; the docstrings say what the arguments are

# The table of refusals is written from the table in the code.
rows = [f"| {row.meaning} | {row.advice} |" for row in CAPABILITIES]
generated = Path(__file__).with_name("_generated")
generated.mkdir(exist_ok=True)
(generated / "refusals.md").write_text("\n".join(["| the function ... | to stay native |", "| --- | --- |", *rows, ""]))
