"""What a checkpoint fixes of a run's options, and what may be edited in its ``config.yaml`` before it goes on."""

MAY_CHANGE = {  # option, or group of options -> True: obeyed from the next update on; False: refused
    "learner": False,
    "data": False,  # the bins, the split and the order of windows among it
    "data.download": True,
    "data.cache": True,  # the batches are the same
    "model": False,
    "init_from": False,  # the run has begun
    "seed": False,  # of the split, and of every update
    "optimizer": True,  # its state stays, and the schedule is that of the options from there on
    "trainer": True,  # among it max_steps, which the schedule depends on
    "trainer.accumulate": False,  # which Lightning counts in
    "planner": True,
    "evaluation": True,
    "environment": True,
    "logger": True,
    "tune": True,  # for the trials to come
    "extend": False,  # nothing to edit: it is given on the command line
    "extended": True,  # a record, which nothing follows from
    "experiment_name": True,
}


def may_change(option: str) -> bool:
    """True if a run may go on with another value of an option of ``train.py``, by its dotted name."""
    while option not in MAY_CHANGE:
        option = option.rpartition(".")[0]
    return MAY_CHANGE[option]
