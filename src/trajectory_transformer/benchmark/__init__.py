"""Speed of training, tokenising and planning on this machine: ``python -m trajectory_transformer.benchmark``."""
