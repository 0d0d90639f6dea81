"""MkDocs hook: notebooks become pages, and links to files of the repository work on the site.

Pictures, tables and READMEs under ``results`` become part of the site. Links to other files lead to the published
repository (``REPOSITORY_URL``) or, without one, become the file's name.
"""

import json
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
SHOWN = {".png", ".csv", ".gif"}
CELL = re.compile(r"<t[dh][ >].*?</t[dh]>", re.DOTALL)
LONG_WORD = re.compile(r"(<[^>]*>)|(?<=\w)([_/.=])(?=[^\W\d]{2})")  # a tag, or a sign within names and paths
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add notebooks as pages, and pictures, tables and READMEs of ``results`` under their own paths."""
    for notebook in sorted((ROOT / "docs").glob("*.ipynb")):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        files.append(File.generated(config, f"{notebook.stem}.md", content=notebook_page(cells)))
    for path in sorted((ROOT / "results").rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in SHOWN or path.name == "README.md":
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def notebook_page(cells: list[dict[str, Any]]) -> str:
    """Return a notebook's cells, with the texts and pictures that they print, as Markdown."""
    parts: list[str] = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if "text" in output:
                parts.append(f"``` {{.text .output}}\n{''.join(output['text']).rstrip()}\n```")
            else:
                parts.append(f"![Picture drawn by the code above](data:image/png;base64,{output['data']['image/png']})")
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace links to files of the repository, in which pages lie in ``docs``, by links within the site."""
    here = page.file.src_uri
    place = posixpath.dirname(here if here.startswith("results/") else f"docs/{here}")

    def link(match: re.Match[str]) -> str:
        picture, text, path, anchor = match.group(1), match.group(2), match.group(3), match.group(4) or ""
        target = posixpath.normpath(posixpath.join(place, path))
        on_site = re.sub(r"\.ipynb$", ".md", target.removeprefix("docs/"))
        if files.get_file_from_path(on_site) is not None:
            return f"{picture}[{text}]({posixpath.relpath(on_site, posixpath.dirname(here) or '.')}{anchor})"
        if (repository := os.environ.get("REPOSITORY_URL")) is not None:
            return f"[{text}]({repository}/blob/main/{target})"
        if text == target:
            return f"`{target}`"
        return text if "`" in text else f"{text} (`{target}`)"

    return LINK.sub(link, markdown)


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the roles in docstrings (``:class:`~.agent.Agent```) by names; mark the options for ``site.css``."""
    html = re.sub(r":(?:class|func|meth|mod|attr|data|exc):<code>~?(?:[\w.]*\.)?(\w+)</code>", r"<code>\1</code>", html)
    return f'<div class="options">{html}</div>' if page.file.src_uri == "options.md" else html


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Let long names and paths in tables break after ``_``, ``/``, ``.`` and ``=``, to fit narrow screens."""

    def breakable(cell: re.Match[str]) -> str:
        return LONG_WORD.sub(lambda match: match[1] or f"{match[2]}<wbr>", cell[0])

    return CELL.sub(breakable, output)
