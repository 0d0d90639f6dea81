"""The masses of attention as a table for the screen."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from ..evaluation.measurements import Measurement
from .attention_measurements import ALL_LAYERS, UNIFORM

_COLUMNS = {  # of at most nine letters a word, so that the table fits a screen of eighty
    "mass_present_transition": "present",
    "mass_previous_transition": "previous",
    "mass_same_dimension_as_predicted": "same dim. as predicted",
    "mass_same_dimension_as_query": "same dim. as query",
    "action_mass_past_actions": "actions: past actions",
    "action_mass_past_observations": "actions: past observ.",
}


def attention_table(measurements: Sequence[Measurement], title: str) -> Table:
    """A row for each head, their mean and uniform attention: percent of attention, and times what is uniform.

    Args:
        figures: as from ``attention_measurements``.
        title: of the table.
    """
    values = {(measurement.method, measurement.name): measurement.value for measurement in measurements}
    heads = [
        method for method in dict.fromkeys(measurement.method for measurement in measurements) if " head " in method
    ]
    shown = [name for name in _COLUMNS if (UNIFORM, name) in values]
    caption = "% of attention to the present transition, …, × what it would be with uniform attention"
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title_justify = table.caption_justify = "left"
    table.add_column("attention of", style="cyan", no_wrap=True)
    for name in shown:
        table.add_column(_COLUMNS[name], justify="right")
    for method in (*heads, ALL_LAYERS):
        cells = (_cell(values[method, name], values[UNIFORM, name]) for name in shown)
        table.add_row(method, *cells, end_section=method in (heads[-1], ALL_LAYERS))
    table.add_row("uniform", *(f"{100 * values[UNIFORM, name]:.0f}     " for name in shown))
    return table


def _cell(mass: float, uniform: float) -> str:
    return f"{100 * mass:.0f} ×{mass / uniform:.1f}"
