"""``--help``: config groups with their choices, and options with their meanings, read from their declarations."""

import dataclasses
import shutil
import sys
import textwrap
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from ..building import TYPED_BY_USER, locate
from ..configuration import EvaluateConfig, TrainConfig
from ..configuration.documentation import Option, meanings_of, options_of
from ..errors import UserError
from .commands import as_called
from .mistakes import did_you_mean
from .names import as_addable, group_names

FLAGS = ("--help", "-h")
NO_CHOICES = "No file yet; {0}=NAME takes {0}/NAME.yaml in configs or in the folder of --config-dir"
LOCAL = "; local/default.yaml, with options of this machine alone, is read by every command"
# Group -> option that names its class.
CLASSES = {"learner": "learner", "planner": "planner.objective", "data": "data.source"}
PURPOSE = {
    TrainConfig: "Train a Trajectory Transformer (or another learner) and act with it in the real environment.",
    EvaluateConfig: "Evaluate a checkpoint: act with it, measure its attention, or predict held-out episodes.",
}


@dataclass(frozen=True)
class Section:
    """The options of one group or class."""

    title: str  # group, or "run" for options outside of groups
    meaning: str
    options: list[Option]
    choices: tuple[str, ...] = ()  # choices of the group that have these options; empty: all


def sections_of(schema: type) -> list[Section]:
    """Return all options of a command except those of classes named by a group's choices."""
    meanings, found = meanings_of(schema), {"run": Section("run", "Options of no group.", [])}
    for option in options_of(schema):
        group = option.name.partition(".")[0] if "." in option.name or option.name in CLASSES else "run"
        found.setdefault(group, Section(group, meanings.get(group, ""), [])).options.append(option)
    return list(found.values())


def class_sections(group: str, configs: Sequence[Path], only: str | None = None) -> Iterator[Section]:
    """Yield the options of the classes named by a group's choices, or by the choice ``only``; one section per class."""
    place, choices, needed = CLASSES.get(group), dict[str, list[str]](), set[str]()
    if place is None:
        return
    for file in choices_of(group, configs):
        spec = yaml.safe_load(file.read_text(encoding="utf-8"))
        for part in place.split(".")[1:]:
            spec = spec.get(part) if isinstance(spec, Mapping) else None
        if isinstance(spec, Mapping) and "_target_" in spec:
            choices.setdefault(str(spec["_target_"]), []).append(file.stem)
            needed |= {f"{place}.{name}" for name, value in spec.items() if value == "???"}
    for target, names in choices.items():
        if only is not None and only not in names:
            continue
        record = locate(target, object, place, TYPED_BY_USER)
        if not dataclasses.is_dataclass(record):
            continue
        options = [
            dataclasses.replace(option, default=dataclasses.MISSING) if option.name in needed else option
            for option in options_of(record, f"{place}.")
        ]
        if options:
            meaning = (record.__doc__ or "").partition("\n")[0].replace("``", "")
            yield Section(f"{group}={','.join(names)}", meaning, options, tuple(names))


def choices_of(group: str, configs: Sequence[Path]) -> list[Path]:
    """Return the YAML files of a group, sorted by name; of files of the same name, that in the first folder counts."""
    files = {file.stem: file for folder in reversed(configs) for file in (folder / group).glob("*.yaml")}
    return [files[name] for name in sorted(files)]


def without_choices(group: str) -> str:
    """Return the message for a group that has no files yet."""
    return NO_CHOICES.format(group) + (LOCAL if group == "local" else "")


def comment_of(file: Path) -> str:
    """Return a YAML file's initial comment in one line, without Hydra's ``@package`` line."""
    lines = file.read_text(encoding="utf-8").splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    words = [line.removeprefix("#").strip() for line in lines[:end]]
    return " ".join(line for line in words if not line.startswith("@package"))


def as_typed(option: Option, value: Any) -> str:
    """Return ``NAME=VALUE`` in command-line syntax."""
    if isinstance(value, Mapping) and "_target_" in value:
        return f"{option.name}._target_={value['_target_']}"
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
    return f"{option.name}={text.replace(', ', ',')}"


def show_help(command: str, schema: type, configs: Sequence[Path], words: Sequence[str]) -> None:
    """Print the help on the groups and options named in ``words``, or on everything if nothing is named.

    Settings in ``words``, such as "model=base", change the values shown.

    Raises:
        UserError: a name is unknown.
        Exception: Hydra's errors about wrong options.
    """
    overrides = [word for word in words if "=" in word]
    topics = [word for word in words if "=" not in word and not word.startswith("-")]
    groups, sections = group_names(configs, schema), sections_of(schema)
    titles = {section.title for section in sections}
    for topic in topics:
        found = [*sections, *class_sections(topic.partition(".")[0], configs)]
        names = [*groups, *titles, *(option.name for section in found for option in section.options)]
        if not any(f"{name}.".startswith(f"{topic}.") for name in names):
            raise UserError(f"--help {topic}: there is no such group or option{did_you_mean(topic, names)}")
    config, chosen = composed(command, configs, as_addable(overrides, schema))
    kept = _kept(sections, overrides) if schema is EvaluateConfig and chosen.get("planner") is None else set[str]()
    if not topics:
        _print(f"{PURPOSE[schema]}\n\nusage: {_program()} [GROUP=CHOICE …] [OPTION=VALUE …] [--config-dir DIR]")
        _print("\n-m runs a job for each combination of values, as in -m seed=0,1 model=tiny,base.")
        _print("--help NAME explains a group or an option, as in --help model or --help planner.act.")
        _print("--help model model=base shows the values of that choice.")
        _print("--hydra-help lists Hydra's own flags.")
        _print("\nGroups and their choices, with * at the current choice:")
    for group in groups:
        if not topics or group in topics:
            _print(f"\n{group}")
            _show_choices(group, configs, chosen.get(group), whole=bool(topics))
    if not topics:
        _print("\nOptions with their current values:")
    for section in sections:
        asked = [topic for topic in topics if section.title in (topic.partition(".")[0], "run")]
        if topics and not asked:
            continue
        choice = chosen.get(section.title)
        for one in (section, *class_sections(section.title, configs, None if topics else str(choice))):
            options = [
                option
                for option in one.options
                if not topics or section.title in asked or any(f"{option.name}.".startswith(f"{t}.") for t in asked)
            ]
            if options:
                _print(f"\n{one.title}: {one.meaning}")
                values = config if not one.choices or choice in one.choices else None
                _show_options(dataclasses.replace(one, options=options), values, kept, details=bool(topics))


def composed(command: str, configs: Sequence[Path], overrides: Sequence[str]) -> tuple[DictConfig, Mapping[str, Any]]:
    """Return the options composed by Hydra, and the chosen file of each group."""
    own = ",".join(f"'file://{folder.absolute()}'" for folder in configs[1:])
    with initialize_config_dir(str(configs[0].absolute()), version_base="1.3"):
        config = compose(command, [*overrides, f"hydra.searchpath=[{own}]"], return_hydra_config=True)
    return config, config.hydra.runtime.choices


def _show_choices(group: str, configs: Sequence[Path], chosen: object, whole: bool) -> None:
    files = choices_of(group, configs)
    if not files:
        _print(f"  {without_choices(group)}")
    width = max((len(file.stem) for file in files), default=0)
    for file in files:
        comment = comment_of(file)
        text = comment if whole else comment.partition(". ")[0].removesuffix(".")
        _print_entry(f"{'*' if file.stem == chosen else ' '} {file.stem:{width}}", text)


def _kept(sections: Sequence[Section], overrides: Sequence[str]) -> set[str]:
    """Return the planner options that evaluate.py takes from the checkpoint: those not in ``overrides``."""
    keys = [word.lstrip("+~").partition("=")[0] for word in overrides]
    given = tuple(f"{key}." for key in keys if "." in key)
    names = [option.name for section in sections if section.title == "planner" for option in section.options]
    return {name for name in names if not f"{name}.".startswith(given)}


def _show_options(section: Section, config: DictConfig | None, kept: Container[str], details: bool) -> None:
    """Print a line for each option, with its permitted values if ``details``; those ``kept`` are the checkpoint's."""
    rows = [
        (f"{option.name}=(checkpoint's)" if option.name in kept else setting(option, config), option)
        for option in section.options
    ]
    width = min(max(len(text) for text, _ in rows), 45)
    for text, option in rows:
        taken = f" ({option.values})" if details and option.values else ""
        _print_entry(f"  {text:{width}}", option.meaning + taken)


def setting(option: Option, config: DictConfig | None) -> str:
    """Return ``NAME=VALUE`` as composed, else the default; the value of a required option is "…"."""
    parent, _, name = option.name.rpartition(".")
    record = None if config is None else OmegaConf.select(config, parent) if parent else config
    if record is not None and name in record:  # and not "???"
        value = record[name]
        return as_typed(option, OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)
    return f"{option.name}=…" if option.default is dataclasses.MISSING else as_typed(option, option.default)


def _program() -> str:
    """Return the command as it was called: "python train.py" or an installed one."""
    return as_called([Path(sys.argv[0]).name])


def _print_entry(name: str, text: str) -> None:
    _print(f"{name}  {text}", indent=len(name) + 2)


def _print(text: str, indent: int = 0) -> None:
    """Print text; on a terminal it is wrapped at the terminal's width with continuation lines indented."""
    if not sys.stdout.isatty():
        print(text)
        return
    width = shutil.get_terminal_size().columns
    indent = min(indent, width // 2)
    for line in text.split("\n"):
        print(textwrap.fill(line, width, subsequent_indent=" " * indent, break_on_hyphens=False, drop_whitespace=True))
