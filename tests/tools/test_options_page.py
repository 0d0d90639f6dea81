"""``docs/options.md`` is up to date, and has every option."""

from tools.options_page import PAGE, marked, page
from trajectory_transformer.configuration import EvaluateConfig, TrainConfig
from trajectory_transformer.configuration.documentation import options_of


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tools.options_page"


def test_every_option_is_there_with_its_meaning() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for option in [*options_of(TrainConfig), *options_of(EvaluateConfig)]:
        if option.name not in ("learner", "planner.objective"):  # whose class is shown
            assert f"| `{option.name}` |" in text
        assert marked(option.meaning) in text
