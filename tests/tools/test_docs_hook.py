"""The site's hook: a notebook as a page, links as they lead within the site."""

from pathlib import Path
from typing import cast

import pytest

pytest.importorskip("mkdocs")

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools import docs_hook


def test_a_notebook_is_a_page_with_its_code_and_what_it_prints() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "Text."]},
        {
            "cell_type": "code",
            "source": ["a = 1\n", "print(a)"],
            "outputs": [{"text": ["1\n", "2\n"]}, {"data": {"image/png": "AAAA"}}],
        },
    ]
    assert docs_hook.notebook_page(cells) == (
        "# Title\nText.\n\n```python\na = 1\nprint(a)\n```\n\n``` {.text .output}\n1\n2\n```\n\n"
        "![Picture drawn by the code above](data:image/png;base64,AAAA)"
    )


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("[tour](tour.ipynb)", "[tour](tour.md)"),
        ("[limits](limits.md#a)", "[limits](limits.md#a)"),
        ("[examples](../examples/README.md)", "examples (`examples/README.md`)"),
        ("[examples/configs](../examples/configs)", "`examples/configs`"),
        ("[paper](https://arxiv.org)", "[paper](https://arxiv.org)"),
    ],
)
def test_links(link: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPOSITORY_URL", raising=False)
    config = cast(MkDocsConfig, MkDocsConfig())  # whose __new__ is declared to return its base
    config.load_dict({"site_name": "site", "docs_dir": str(tmp_path), "site_dir": str(tmp_path / "site")})
    names = ("tutorial.md", "tour.md", "limits.md")
    files = Files([File(name, str(tmp_path), str(tmp_path / "site"), False) for name in names])
    page = Page(None, next(iter(files)), config)
    assert docs_hook.on_page_markdown(link, page=page, config=config, files=files) == expected


def test_long_names_in_tables_may_break_and_nothing_else() -> None:
    page, config = cast(Page, None), cast(MkDocsConfig, None)
    html = '<p>a_long_name</p><td><a href="a_b.html">a_long/name</a> 1.5 2/3 k_=x</td><thead>a_b</thead>'
    assert docs_hook.on_post_page(html, page=page, config=config) == (
        '<p>a_long_name</p><td><a href="a_b.html">a_<wbr>long/<wbr>name</a> 1.5 2/3 k_=x</td><thead>a_b</thead>'
    )
