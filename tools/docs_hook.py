"""MkDocs hook: pages link to files of the repository as on GitHub; the site gets what it can show of them.

Pictures, tables and READMEs under ``results`` become part of the site. Other files link to where the repository is
published (``REPOSITORY_URL``), or named without a link.
"""

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
SHOWN = {".png", ".csv", ".gif"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add pictures, tables and READMEs of ``results``, under their own paths."""
    for path in sorted((ROOT / "results").rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in SHOWN or path.name == "README.md":
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to where the site has what they name; in the repository pages lie in ``docs``."""
    here = page.file.src_uri
    place = posixpath.dirname(here if here.startswith("results/") else f"docs/{here}")

    def link(match: re.Match[str]) -> str:
        picture, text, path, anchor = match.group(1), match.group(2), match.group(3), match.group(4) or ""
        target = posixpath.normpath(posixpath.join(place, path))
        on_site = target.removeprefix("docs/")
        if files.get_file_from_path(on_site) is not None:
            return f"{picture}[{text}]({posixpath.relpath(on_site, posixpath.dirname(here) or '.')}{anchor})"
        if (repository := os.environ.get("REPOSITORY_URL")) is not None:
            return f"[{text}]({repository}/blob/main/{target})"
        return text if "`" in text else f"{text} (`{target}`)"

    return LINK.sub(link, markdown)


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Show the roles of docstrings (``:class:`~.agent.Agent```) as names."""
    return re.sub(r":(?:class|func|meth|mod|attr|data|exc):<code>~?(?:[\w.]*\.)?(\w+)</code>", r"<code>\1</code>", html)
