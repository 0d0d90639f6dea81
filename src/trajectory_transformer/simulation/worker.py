"""A worker process of ``simulate``: takes a job on stdin, writes pickled episodes to stdout until nobody reads them."""

import os
import pickle
import signal
import sys

from .simulate import simulate_share


def main() -> None:
    """Ctrl-C is the parent's to handle. What a library prints goes to stderr, so that stdout carries episodes only."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    recipe, seed, first, stride = pickle.load(sys.stdin.buffer)
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        for episode in simulate_share(recipe, seed, first, stride):
            pickle.dump(episode, output, protocol=pickle.HIGHEST_PROTOCOL)
            output.flush()
    except BrokenPipeError:
        os._exit(0)  # closing the output would raise again


if __name__ == "__main__":
    main()
