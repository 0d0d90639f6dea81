"""The README.md beside saved weights."""

from ..model.config import TrajectoryTransformerConfig

_CARD = """---
library_name: trajectory-transformer
pipeline_tag: reinforcement-learning
tags:
- trajectory-transformer
- reinforcement-learning
- offline-rl
- planning
---

# Trajectory Transformer

Weights of a Trajectory Transformer ([Janner, Li and Levine, 2021](https://arxiv.org/abs/2106.02039)): a GPT over
discretised transitions `[observation | action | reward | return-to-go]`, with a separate output head for each
dimension, to be planned with by beam search.

| | |
|---|---|
{rows}

## Use

```python
import torch
from trajectory_transformer import TrajectoryTransformerModel

model = TrajectoryTransformerModel.from_pretrained("DIRECTORY OR HUB ID")
tokens = torch.randint(0, {vocab_size}, (1, {transition_dim}))  # one transition
logits = model(tokens).logits  # (1, {transition_dim}, {outputs}); the last one is the stop token
```

## What is not here

Tokens mean nothing without the bins that the training data were cut into. To act in an environment, fit them again on
that data set, which makes a checkpoint that `evaluate.py` plans with:

```
python -m trajectory_transformer.interop.adopt DIRECTORY CHECKPOINT.ckpt --dataset-id ID
```
"""


def model_card(config: TrajectoryTransformerConfig, num_parameters: int) -> str:
    """Markdown with the hub's metadata.

    Args:
        config: of the model.
        num_parameters: of the model.
    """
    facts = {
        "parameters": f"{num_parameters:,}",
        "layers, heads, width": f"{config.n_layer}, {config.n_head}, {config.n_embd}",
        "observation, action dimensions": f"{config.observation_dim}, {config.action_dim}",
        "tokens of a transition": config.transition_dim,
        "bins of a dimension": config.vocab_size,
        "longest input": f"{config.block_size} tokens ({(config.block_size + 1) // config.transition_dim} transitions)",
        "loss weights": f"action {config.action_weight:g}, reward {config.reward_weight:g}, "
        f"return-to-go {config.value_weight:g}",
    }
    return _CARD.format(
        rows="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
        vocab_size=config.vocab_size,
        transition_dim=config.transition_dim,
        outputs=config.vocab_size + 1,
    )
