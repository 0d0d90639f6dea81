"""How fast this machine trains, tokenises and plans: ``python -m trajectory_transformer.benchmark [PART …]``."""
