"""Rename the project: ``make rename NAME=my_project``, in a checkout without uncommitted changes.

The package, its imports, commands and paths are renamed. Identifiers within file formats are kept, such as the
checkpoints' section "trajectory_transformer" and the model type in ``config.json``, so that checkpoints and published
weights still load. This command then removes itself.
"""

import keyword
import re
import subprocess
import sys
from pathlib import Path

OLD = "trajectory_transformer"
TEXT = {".py", ".md", ".yaml", ".toml", ".txt", ".ipynb", ".c", ".h", ""}
# The package at the beginning of a dotted name or path, and in an import; not in an environment's id, as of a maze.
NAME = re.compile(rf"(?<![\w-]){OLD}(?=\.\w|/(?![A-Z{{])|/?$)|(?<=import ){OLD}\b|(?<=from ){OLD}\b", re.MULTILINE)
DISTRIBUTION = re.compile(r"trajectory-transformer(?=\[|$|\"$)", re.MULTILINE)


def renamed(text: str, name: str, every: bool) -> str:
    """Return the text with the new name: ``every`` occurrence, or only those that name the package."""
    if every:
        return text.replace(OLD, name).replace(OLD.replace("_", "-"), name.replace("_", "-"))
    return DISTRIBUTION.sub(name.replace("_", "-"), NAME.sub(name, text))


def rename(root: Path, name: str) -> int:
    """Rename the project in ``root``; returns the number of files that changed.

    Raises:
        SystemExit: the name is not a valid package name, or there are uncommitted changes.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name in sys.stdlib_module_names:
        raise SystemExit(f"NAME={name} cannot be the name of a Python package; choose one such as my_project")
    git = ["git", "-C", str(root)]
    if subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, check=True).stdout:
        raise SystemExit("there are uncommitted changes; commit them first, so that the renaming can be undone")
    files = subprocess.run([*git, "ls-files", "-z"], capture_output=True, text=True, check=True).stdout.split("\0")
    changed = 0
    for file in filter(None, files):
        path = root / file
        if path.suffix not in TEXT or path.is_dir() or file.startswith("results/"):  # git lists links as files
            continue
        text = path.read_text(encoding="utf-8")
        new = renamed(text, name, every=path.name == "pyproject.toml")
        if new != text:
            path.write_text(new, encoding="utf-8")
            changed += 1
    subprocess.run([*git, "mv", f"src/{OLD}", f"src/{name}"], check=True)
    subprocess.run([*git, "rm", "--quiet", "--force", "tools/rename.py", "tests/tools/test_rename.py"], check=True)
    makefile = root / "Makefile"
    text = re.sub(r"rename: ## .*?\n\n", "", makefile.read_text(encoding="utf-8"), flags=re.DOTALL)
    makefile.write_text(text.replace(" lock rename\n", " lock\n"), encoding="utf-8")
    return changed


if __name__ == "__main__":
    count = rename(Path(__file__).parents[1], sys.argv[1])
    print(f"{count} files renamed to {sys.argv[1]}; `make format check test`, then commit")
