"""Executes a notebook in an empty folder, and stores it with its outputs where asked to.

usage: python ci/run_notebook.py NOTEBOOK [--update]
"""

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def main(path: Path, update: bool) -> None:
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": folder}}).execute()
    if update:
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times of execution: they would differ each time
        notebook.metadata.pop("language_info", None)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--update" in sys.argv[2:])
