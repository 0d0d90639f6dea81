"""Write ``docs/options.md``, the list of all options, from their declarations: ``python -m tools.options_page``."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig

from trajectory_transformer.app.help import (
    Section,
    choices_of,
    class_sections,
    comment_of,
    composed,
    sections_of,
    setting,
    without_choices,
)
from trajectory_transformer.app.names import group_names
from trajectory_transformer.configuration import EvaluateConfig, TrainConfig

ROOT = Path(__file__).parents[1]
CONFIGS = [ROOT / "configs"]
PAGE = ROOT / "docs" / "options.md"
HEAD = """# Options

<!-- Written by tools/options_page.py; change the docstrings and comments that it is made from instead. -->

Every option of the two commands, with its default, its valid values and its meaning. An option is given as
`NAME=VALUE`; `GROUP=CHOICE` sets several at once, from the file `configs/GROUP/CHOICE.yaml` or one in the folder of
`--config-dir`. Defaults are those of the command without any option; `python train.py --help model model=base` shows
those of a group with other choices.
"""


def page() -> str:
    """Return the page's text."""
    parts = [HEAD]
    seen: set[str] = set()
    for command, schema in (("train", TrainConfig), ("evaluate", EvaluateConfig)):
        config, _ = composed(command, CONFIGS, [])
        parts.append(f"## {command}.py\n")
        shared = [section for section in sections_of(schema) if section.title in seen]
        if shared:
            names = ", ".join(f"[`{section.title}`](#{section.title})" for section in shared)
            parts.append(
                f"The options of {names} are those of train.py; planner options that are not given are the\n"
                "checkpoint's.\n"
            )
        for section in sections_of(schema):
            if section.title not in seen or section.title == "run":
                parts += section_parts(section, config, schema)
        seen |= {section.title for section in sections_of(schema)} - {"run"}
        for group in group_names(CONFIGS, schema):
            if group not in seen:
                parts += [f"### {group}\n", *choices_table(group)]
                seen.add(group)
    return "\n".join(parts)


def section_parts(section: Section, config: DictConfig, schema: type) -> Iterator[str]:
    """Yield a group's heading, choices and options, and the options of the classes named by its choices."""
    yield f"### {section.title}\n"
    yield f"{marked(section.meaning)}\n"
    if section.title in group_names(CONFIGS, schema):
        yield from choices_table(section.title)
    yield options_table(section, config)
    for one in class_sections(section.title, CONFIGS):
        names = " and ".join(f"`{section.title}={choice}`" for choice in one.choices)
        yield f"With {names}: {one.meaning}\n"
        yield options_table(one, None)


def choices_table(group: str) -> list[str]:
    rows = [[f"`{group}={file.stem}`", marked(comment_of(file))] for file in choices_of(group, CONFIGS)]
    return [table(["choice", "meaning"], rows) if rows else f"{without_choices(group)}.\n"]


def options_table(section: Section, config: DictConfig | None) -> str:
    rows = []
    for option in section.options:
        name, _, value = setting(option, config).partition("=")
        rows.append([f"`{name}`", "required" if value == "…" else f"`{value}`", option.values, marked(option.meaning)])
    return table(["option", "default", "values", "meaning"], rows)


def marked(text: str) -> str:
    """Return a text with ``_target_`` as code, so that Markdown does not read it as emphasis."""
    return text.replace("_target_", "`_target_`")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
