"""Options that a checkpoint fixes, and those that may be edited in ``config.yaml`` before a run is resumed."""

MAY_CHANGE = {  # option or group -> True: takes effect from the next update on; False: a change is refused
    "learner": False,
    "data": False,  # among others the bins, the split and the order of windows
    "data.download": True,
    "data.cache": True,  # the batches are the same
    "model": False,
    "init_from": False,  # used only at the start
    "seed": False,  # determines the split and every update
    "optimizer": True,  # the optimiser's state is kept; the schedule follows the new options
    "optimizer.muon": False,  # its state differs from AdamW's
    "trainer": True,  # among others max_steps, which the schedule depends on
    "trainer.accumulate": False,  # Lightning's counters depend on it
    "planner": True,
    "evaluation": True,
    "environment": True,
    "logger": True,
    "tune": True,  # applies to further trials
    "extend": False,  # given on the command line only
    "extended": True,  # a record without effect
    "experiment_name": True,
}


def may_change(option: str) -> bool:
    """Return True if a run may be resumed with another value of the ``train.py`` option of this dotted name."""
    while option not in MAY_CHANGE:
        option = option.rpartition(".")[0]
    return MAY_CHANGE[option]
