"""lossbook: the executable companion to five sources on loss functions."""

from pathlib import Path

__version__ = "0.1.0"

# The folder above the package, as in an editable install; a package installed without its project takes the working
# directory instead, and never writes among the installed packages.
PROJECT = Path(__file__).resolve().parent.parent
if not (PROJECT / "pyproject.toml").is_file():
    PROJECT = Path.cwd()
