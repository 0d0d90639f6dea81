"""Errors of Hydra and OmegaConf, rewritten as one sentence with the nearest valid names."""

import contextlib
import difflib
import re
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import fields
from pathlib import Path
from textwrap import shorten
from typing import Any, NoReturn

import yaml
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from ..building import PACKAGE
from ..configuration import EvaluateConfig, TrainConfig, described, require
from ..errors import UserError
from .names import TEXTS, group_names, option_names, options_of
from .schema import OPEN_OPTIONS

EXPECTED = (HydraException, OmegaConfBaseException, yaml.YAMLError)
EXTRAS = {"joblib": "sweep", "submitit_local": "slurm", "submitit_slurm": "slurm"}  # launcher -> optional dependency

FIXED = {  # options of Hydra -> why nobody may change them
    "hydra.callbacks.checks": "it checks the other options",
    "hydra.output_subdir": "a sweep's table is made from the folders of that name",
}
OPEN_IN_HYDRA = (  # mappings with arbitrary keys
    "hydra.callbacks", "hydra.hydra_logging", "hydra.job.env_set", "hydra.job_logging", "hydra.launcher",
    "hydra.sweeper",
)  # fmt: skip
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")
ONLY_IN_SWEEPS = ("hydra.sweep.", "hydra.sweeper", "hydra.launcher")
COMBINED = ("callbacks", "debug", "experiment", "local", "logger")  # groups that take a list of choices
DEEPEST = 16  # levels of lists and mappings in a value; OmegaConf fails from about a hundred on

MOVED = {  # options and commands of earlier versions -> their current names
    "planner.critic": "planner.objective.critic",
    "planner.critic_score": "planner.objective.score",
    "iql": "learner",
    "ensemble": "learner",
    "model.convert": f"python -m {PACKAGE}.interop.convert",
    "model.adopt": f"python -m {PACKAGE}.interop.adopt",
}


def did_you_mean(key: str, names: Sequence[str]) -> str:
    """Return the end of a message: the option's current name, up to three similar names, or all of the same level."""
    for old, new in MOVED.items():
        if f"{key}.".startswith(f"{old}.") and (new != "learner" or new in names):
            return f"; it is now '{new}{key.removeprefix(old)}'"
    parent, _, last = key.lower().rpartition(".")
    level = dict.fromkeys(name for name in names if name.rpartition(".")[0] == parent)
    short = [name for name in names if _initials(name) == last]  # "lr" for "learning_rate"
    by_last: dict[str, list[str]] = {}
    for name in names:
        by_last.setdefault(name.rpartition(".")[2], []).append(name)
    if parent and level:  # in an existing group: names that contain the word ("attn_pdrop" for "rop") or resemble it
        parts = {name.rpartition(".")[2]: name for name in level}
        similar = difflib.get_close_matches(last, parts, n=3, cutoff=0.65)
        holding = [name for part, name in parts.items() if len(last) > 2 and last in part]
        ranked = [*holding, *(parts[part] for part in similar), *by_last.get(last, []), *short]
    else:
        similar_whole = difflib.get_close_matches(key.lower(), names, n=3, cutoff=0.75)
        similar_last = difflib.get_close_matches(last, by_last, n=3, cutoff=0.65)
        ranked = by_last.get(last, []) + short + similar_whole + [n for part in similar_last for n in by_last[part]]
        ranked.sort(key=lambda name: name not in level)  # those with its parent first
    if near := list(dict.fromkeys(ranked))[:3]:
        return "; did you mean " + " or ".join(f"'{name}'" for name in near) + "?"
    return f"; valid here: {', '.join(level)}" if level else ""


def _initials(name: str) -> str:
    """Return the initials of the words in an option's last name; empty for a single word."""
    words = name.rpartition(".")[2].split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""


def without_usage(parser: ArgumentParser) -> ArgumentParser:
    """Let a parser of flags report a mistake as one sentence."""

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; --help explains the options")

    parser.error = refuse  # pyright: ignore[reportAttributeAccessIssue]
    return parser


def refuse_flags(words: Sequence[str]) -> None:
    """Raise UserError for flags that Hydra does not know, that have no effect or that replace all options' files."""
    given = without_usage(get_args_parser()).parse_args(list(words))
    for flag in ("config_name", "config_path", "experimental_rerun"):
        require(
            getattr(given, flag) is None,
            f"--{flag.replace('_', '-')} replaces all files of options: leave it out; --config-dir DIR adds your own",
        )
    require(given.cfg is not None or not (given.resolve or given.package), "--resolve and --package need --cfg job")
    with contextlib.suppress(HydraException):  # which Hydra raises again
        for override in OverridesParser.create().parse_overrides(given.overrides) if given.cfg is not None else ():
            require(
                not override.is_sweep_override(),
                f"{override.input_line}: --cfg shows the options of one job: give one value of {override.key_or_group}",
            )
    commands = (given.run, given.multirun, given.shell_completion, given.cfg is not None, given.info is not None)
    require(sum(commands) <= 1, "--run, --multirun, --cfg, --info and --shell-completion exclude each other: give one")


def refuse_unreadable(words: Sequence[str], configs: Sequence[Path], schema: type) -> None:
    """Raise UserError for options on which Hydra would raise bare Python errors, or print its own flags."""
    parser, known = OverridesParser.create(), {*option_names(schema), *group_names(configs, schema)}
    for word in words:
        name, equals, value = word.lstrip("-").partition("=")
        require(
            not word.startswith("-") or name not in known,
            f"{word}: options have no dashes; give {name}={value if equals else 'VALUE'}",
        )
        if not word.startswith("-") and ("=" in word or word.startswith("~")):
            _refuse_form(word)
        if word.startswith("-") or "=" not in word:
            continue
        try:
            override = parser.parse_override(word)
        except HydraException:  # Hydra raises it again
            continue
        except (ValueError, RecursionError):
            why = "it is too long a number, or nested too deeply"
            raise UserError(f"cannot read the option '{word[:40]}…': {why}") from None
        if _depth(override.value()) > DEEPEST:
            raise UserError(f"cannot read the option '{word[:40]}…': it is nested too deeply")
        if override.key_or_group.startswith("tune.") and not any(
            other.lstrip("+").startswith(("tune=", "experiment=")) for other in words
        ):
            raise UserError(
                f"{word[:80]} changes a search, but no search is chosen; add tune=optimizer or tune=planner"
            )
        group, value = override.key_or_group, override.value()
        folders = [folder for config in configs if (folder := config / group).is_dir()]
        if override.is_sweep_override() or not folders or group == "hydra":
            continue
        names = value if isinstance(value, list) else [value]
        if not all(isinstance(name, (str, QuotedString)) and "${" not in _text(name) for name in names):
            known = ", ".join(sorted({file.stem for folder in folders for file in folder.glob("*.yaml")}))
            raise UserError(f"{word[:80]} is not a choice of the group '{group}'; choose one of {known}")
        if len(names) > 1 and group not in COMBINED:
            raise UserError(
                f"{word[:80]}: one run takes one choice of the group '{group}'; add -m and write {group}="
                f"{','.join(map(_text, names))} to run each"
            )


def is_hydras_own(word: str) -> bool:
    """Return True for a flag or an option of Hydra's other than those of any run: its folder, ``-m``, own files."""
    common = (*FOLDERS, "-m", "--multirun", "--config-dir", "-cd")
    return word.lstrip("+~").startswith(("hydra", "-")) and not word.startswith(common)


def _refuse_form(word: str) -> None:
    """Raise UserError for a word without a name, or that removes an option or moves a group, or changes the checks."""
    key, equals, value = word.lstrip("+~").partition("=")
    require(key.strip() != "" or not equals, f"'{word[:80]}' lacks the name of an option; give NAME=VALUE")
    group, at, _ = key.partition("@")
    require(at == "", f"{word[:80]}: the place of a group's options is fixed; write {group}={value[:80] or 'NAME'}")
    for fixed, reason in FIXED.items():
        parent = f"{fixed.rpartition('.')[0]}."
        require(
            f"{key}." != parent and not f"{key}.".startswith(f"{fixed}."),
            f"{word[:80]}: {fixed} must stay as it is, because {reason}: leave it out",
        )
    require(
        not f"{key}.".startswith("tune.parameters."),
        f"{word[:80]}: what a search varies is written in a file of the group 'tune'; --config-dir DIR adds your own",
    )
    is_entry = key.startswith(tuple(f"{name}." for name in (*OPEN_OPTIONS, "hydra")))
    require(
        not word.startswith("~") or is_entry,
        f"{word[:80]} removes an option, but every option has a value: give {key}=VALUE instead, or leave it out",
    )


def _depth(value: object) -> int:
    """Return the number of levels of nested lists and mappings."""
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if entries is None else 1 + max(map(_depth, entries), default=0)


def _text(value: object) -> str:
    return value.text if isinstance(value, QuotedString) else str(value)


def explain(error: BaseException, schema: type, configs: Sequence[Path]) -> str:
    """Return one sentence for one of the ``EXPECTED`` errors, with the nearest names of ``schema`` and YAML groups."""
    text = " ".join(str(error).split())
    if isinstance(error, yaml.YAMLError):
        return f"not valid YAML: {text}"
    if isinstance(error, OverrideParseException):
        if "=" not in error.override:
            is_file = schema is EvaluateConfig and error.override.endswith(".ckpt")
            hint = f"did you mean checkpoint={error.override}?" if is_file else "give NAME=VALUE"
            return f"'{error.override}' is not an option with a value; {hint}"
        return (
            f"cannot read the option '{error.override}'; quote a value that contains '=', ',', quotes or brackets: "
            "\"key='value'\""
        )
    if several := re.search(r"Ambiguous value for argument '(([^'=]+)=(.*?))' 1\. ", text):
        option, name, values = several.groups()
        if dict(options_of(schema)).get(name) in (str, str | None):
            text = values.replace("'", "")
            return f"{name}={text} has several values: add -m to run each (a text is quoted: \"{name}='{text}'\")"
        is_single = name in group_names(configs, schema) and name not in COMBINED
        hint = "" if is_single else f" (a list is written {name}=[{values}])"
        return f"{option} has several values: add -m to run each{hint}"
    if twice := re.search(r"Multiple values for (\S+)\. To override a value use 'override \S+ (\S+)'", text):
        group, choice = twice.groups()
        return f"+{group}={choice}: the group '{group}' has a choice already; write {group}={choice}, without +"
    if present := re.search(r"Could not append to config\. An item is already at '([^']+)'", text):
        return f"+{present[1]}: '{present[1]}' is an option already; write {present[1]}=VALUE, without +"
    if kind := re.search(r"does not support sweep type : (\w+)_SWEEP", text):
        return f"a sweep tries single values, not an {kind[1].lower()}: list them, as in seed=0,1,2"
    found = re.match(r"In '([^']+)':", text)
    files = [file for folder in configs if found and (file := folder / f"{found[1]}.yaml").is_file()]
    place = f"{files[0]}: " if files else ""
    groups = group_names(configs, schema)
    if isinstance(error, MissingConfigException):
        return _missing_choice(error, place, configs, groups)
    if group := re.search(r"Could not override '([^']+)'\. No match in the defaults list", text):
        if schema is EvaluateConfig and group[1] in (field.name for field in fields(TrainConfig)):
            return f"{group[1]}=… is an option of train.py: an evaluation has that of its checkpoint; leave it out"
        return f"{place}there is no config group '{group[1]}'{did_you_mean(group[1], groups)}"
    cause = next((e for e in _chain(error) if isinstance(e, OmegaConfBaseException) and e.full_key), None)
    if cause is None:
        return text
    if isinstance(cause, MissingMandatoryValue):
        return f"{place}{cause.full_key} is required: give {cause.full_key}=VALUE"
    message = shorten(str(cause).splitlines()[0], 200, placeholder="…")
    if "not in" not in message:
        hint = dict(options_of(schema)).get(str(cause.full_key).partition("[")[0], Any)
        must = "" if hint is Any or isinstance(cause, InterpolationResolutionError) else f" must be {described(hint)}"
        return f"{place}{cause.full_key}{must}: {message[0].lower()}{message[1:]}"
    override = re.search(r"Could not override '([^']+)'", text)
    key, names = override[1] if override else str(cause.full_key), [*option_names(schema), *groups]
    if opened := next((name for name in (*OPEN_OPTIONS, *OPEN_IN_HYDRA) if f"{key}.".startswith(f"{name}.")), None):
        key = str(cause.full_key)  # the entry, if the whole mapping was given
        parent, _, last = key.rpartition(".")
        there = [str(name) for name in cause.parent_node] if isinstance(cause.parent_node, Mapping) else []
        if near := difflib.get_close_matches(last, there, n=1):
            return f"{place}there is no option '{key}'; did you mean '{parent}.{near[0]}'?"
        return f"'{key}' is a new entry of {opened}; write +{key}=VALUE to add it"
    if key.startswith("hydra."):
        parent = key.rpartition(".")[0]
        names = [f"{parent}.{name}" for name in getattr(cause.object_type, "__dataclass_fields__", {})]
    return f"{place}there is no option '{key}'{did_you_mean(key, names)}"


def _missing_choice(error: MissingConfigException, place: str, configs: Sequence[Path], groups: Sequence[str]) -> str:
    """Return the message for a choice, on the command line or in a defaults list, that names no file."""
    missing, options = error.missing_cfg_file or "", list(error.options or [])
    known = max((name for name in groups if missing.startswith(f"{name}/")), key=len, default=None)
    group, _, option = missing.rpartition("/") if known is None else (known, "/", missing[len(known) + 1 :])
    if not options:
        name = group or option
        return f"{place}there is no config group '{name}'{did_you_mean(name, groups)}"
    near = difflib.get_close_matches(option.rpartition("/")[2].lower(), options, n=1)
    own = "" if len(configs) > 1 or group not in groups else "; --config-dir DIR adds choices of your own"
    hint = f"; did you mean '{group}={near[0]}'?" if near else own
    if group == "hydra/launcher" and option in EXTRAS:
        hint = f"; install it with pip install 'trajectory-transformer[{EXTRAS[option]}]'"
    files = [file for folder in configs for file in sorted(folder.rglob("*.yaml"))]
    # Hydra names train.yaml whichever file made the choice.
    place = next((f"{file}: " for file in files if (group, option) in _defaults(file)), "")
    return f"{place}{group}={option} is not a choice; choose one of {', '.join(options)}{hint}"


def file_of(name: str, configs: Sequence[Path]) -> Path | None:
    """Return the file ``NAME.yaml`` in the first of the folders ``configs`` that has one."""
    return next((path for folder in configs if (path := folder / f"{name}.yaml").is_file()), None)


def choice_of(name: str, group: str, configs: Sequence[Path]) -> str | None:
    """Return the choice of ``group`` by the file ``NAME.yaml`` in the folders ``configs``, or by those it builds on."""
    found = None
    file = file_of(name, configs)
    for key, value in () if file is None else _defaults(file):
        if key == group:
            found = value
        elif key == "" and value != "_self_":
            found = choice_of(f"{name.rpartition('/')[0]}/{value}", group, configs) or found
    return found


def _defaults(file: Path) -> list[tuple[str, str]]:
    """Return the choices (group, option) in a YAML file's defaults list; a file of the same folder has group ""."""
    with contextlib.suppress(OSError, yaml.YAMLError, AttributeError):  # no defaults list, or unreadable
        entries = yaml.safe_load(file.read_text(encoding="utf-8")).get("defaults") or []
        pairs = [[("", entry)] if isinstance(entry, str) else list(entry.items()) for entry in entries]
        return [(f" {key}".split()[-1].lstrip("/") if key else "", value) for found in pairs for key, value in found]
    return []


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def refuse_additions(overrides: Sequence[str], schema: type, configs: Sequence[Path]) -> None:
    """Raise UserError for ``+name=value`` with a name that the schema lacks, which Hydra would accept."""
    hydras = [f"hydra.{name}" for name in option_names(HydraConf)]
    names = [*option_names(schema), *group_names(configs, schema), *hydras]
    opened = tuple(f"{name}." for name in (*OPEN_OPTIONS, *OPEN_IN_HYDRA))
    for override in overrides:
        key = override.lstrip("+").split("=", 1)[0].split("@", 1)[0]
        known = key in names or key.startswith((*opened, "hydra/"))
        if override.startswith("+") and not known:
            raise UserError(f"there is no option '{key}'{did_you_mean(key, names)}")


def refuse_absent_local(chosen: object, configs: Sequence[Path]) -> None:
    """Raise UserError for ``local=NAME`` without such a file, which Hydra ignores because the group is optional."""
    there = sorted({file.stem for folder in configs for file in (folder / "local").glob("*.yaml")})
    for name in chosen if isinstance(chosen, Sequence) and not isinstance(chosen, str) else [chosen]:
        if name not in (None, "default", *there):
            near = difflib.get_close_matches(str(name), there, n=1)
            hint = f"; did you mean 'local={near[0]}'?" if near else ""
            known = f"choose one of {', '.join(there)}" if there else "there are none"
            raise UserError(f"local={name} is not a choice; {known}{hint}")


def refuse_changed_text(choices: Mapping[str, object], configs: Sequence[Path], schema: type) -> None:
    """Raise UserError for text in a chosen YAML file that YAML reads as a number or flag, and so changes: ``1e3``."""
    free = {name for name, hint in options_of(schema, with_choices=False) if hint in TEXTS}
    for group, chosen in choices.items():
        names = chosen if isinstance(chosen, Sequence) and not isinstance(chosen, str) else [chosen]
        for file in (folder / group / f"{name}.yaml" for folder in configs for name in names):
            if not file.is_file() or group.startswith("hydra"):
                continue
            text = file.read_text(encoding="utf-8")
            package = re.search(r"^#\s*@package\s+(\S+)", text, re.MULTILINE)
            place = group.replace("/", ".") if package is None else package[1].replace("_global_", "")
            _require_unchanged(file, place, yaml.compose(text, yaml.SafeLoader), OmegaConf.load(file), free)


def _require_unchanged(file: Path, place: str, written: Any, read: Any, free: Set[str]) -> None:
    if isinstance(written, yaml.MappingNode):
        for key, value in written.value:
            name = f"{place}.{key.value}".lstrip(".")
            if isinstance(read, Mapping) and isinstance(key.value, str) and key.value in read:
                raw = OmegaConf.to_container(read) if isinstance(read, DictConfig) else read
                assert isinstance(raw, dict)
                _require_unchanged(file, name, value, raw[key.value], free)
    elif isinstance(written, yaml.SequenceNode) and isinstance(read, list):
        for entry, value in zip(written.value, read, strict=True):
            _require_unchanged(file, place, entry, value, free)
    elif place in free and isinstance(written, yaml.ScalarNode) and isinstance(read, (bool, int, float)):
        require(
            str(read) == written.value,
            f"{file}: YAML reads {written.value} as {read!r}, but {place} is a text: quote it, '{written.value}'",
        )


def refuse_idle(overrides: Sequence[str], is_sweep: bool) -> None:
    """Raise UserError for Hydra options without effect in this mode (run or sweep), and for empty folder names."""
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key in FOLDERS and value.strip("'\"") == "":
            raise UserError(f"{key}= names no folder: give {key}=DIR, or {key}=. for the working directory")
        if key == "hydra.run.dir" and is_sweep:
            raise UserError("hydra.run.dir has no effect with -m: a sweep takes hydra.sweep.dir=DIR")
        if not is_sweep and key.split("@")[0].replace("/", ".").startswith(ONLY_IN_SWEEPS):
            raise UserError(f"{key} has an effect only in a sweep: add -m")
