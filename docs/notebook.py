"""``python docs/notebook.py`` makes ``tutorial.ipynb`` of ``tutorial.md``: the same text, code and outputs."""

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$\n?", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# (\w+\.py)\n")


def notebook(page: str) -> str:
    """A page of Markdown as a notebook; a block that begins with a file's name writes that file."""
    cells: list[dict[str, Any]] = []
    at = 0
    for match in [*_BLOCK.finditer(page), None]:
        text = page[at : match.start() if match else None].strip()
        if text:
            cells.append({"cell_type": "markdown", "metadata": {}, "source": _lines(text)})
        if match is None:
            break
        at, kind, code = match.end(), match[1], match[2].rstrip("\n")
        if kind == "python":
            name = _FILE.match(code)
            code = f"%%writefile {name[1]}\n{code}" if name else code
            cell = {
                "cell_type": "code",
                "execution_count": None,
                "metadata": {},
                "outputs": [],
                "source": _lines(code),
            }
            cells.append(cell)
        else:
            code_cell = next(cell for cell in reversed(cells) if cell["cell_type"] == "code")
            code_cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": _lines(code + "\n")}]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    page = (HERE / "tutorial.md").read_text(encoding="utf-8")
    (HERE / "tutorial.ipynb").write_text(notebook(page), encoding="utf-8")
