"""Train the behaviour policies that the embedded MuJoCo recipes simulate (soft actor-critic, Stable-Baselines3).

Needs the ``behavior`` extra. Writes one ``.npz`` of plain arrays for each snapshot and a CSV log beside them:

    python -m trajectory_transformer.data.recipes.train_behavior --env Hopper-v5 --steps 300000 --out logs/behavior
"""

import argparse
import csv
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import SAC  # pyright: ignore[reportMissingImports]  (the behavior extra)
from stable_baselines3.common.callbacks import BaseCallback  # pyright: ignore[reportMissingImports]


def actor_arrays(model: SAC) -> dict[str, np.ndarray]:
    """The tanh-Gaussian actor as float32 arrays: hidden weights (out, in) and biases, then mean and log-std heads."""
    actor = model.actor
    layers = [layer for layer in actor.latent_pi if isinstance(layer, torch.nn.Linear)]
    named = {f"hidden_{i}": layer for i, layer in enumerate(layers)} | {"mean": actor.mu, "log_std": actor.log_std}
    arrays = {}
    for name, layer in named.items():
        arrays[f"{name}_weight"] = layer.weight.detach().numpy().astype(np.float32)
        arrays[f"{name}_bias"] = layer.bias.detach().numpy().astype(np.float32)
    return arrays


def evaluate(model: SAC, env_id: str, episodes: int) -> tuple[float, float]:
    """Mean return and mean length of ``episodes`` deterministic episodes (seeds 10000, 10001, …)."""
    env = gym.make(env_id)
    returns, lengths = [], []
    for episode in range(episodes):
        observation, _ = env.reset(seed=10_000 + episode)
        total, steps, done = 0.0, 0, False
        while not done:
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, steps, done = total + float(reward), steps + 1, terminated or truncated
        returns.append(total)
        lengths.append(steps)
    env.close()
    return float(np.mean(returns)), float(np.mean(lengths))


class SnapshotCallback(BaseCallback):
    """Every ``every`` steps: evaluate, write the actor's arrays, append a row to ``log.csv``."""

    def __init__(self, env_id: str, every: int, out: Path) -> None:
        super().__init__()
        self.env_id, self.every, self.out = env_id, every, out
        self.start = time.time()

    def _on_step(self) -> bool:
        assert isinstance(self.model, SAC)
        if self.num_timesteps % self.every == 0:
            mean_return, mean_length = evaluate(self.model, self.env_id, episodes=5)
            np.savez(self.out / f"step_{self.num_timesteps:07d}.npz", **actor_arrays(self.model))  # type: ignore[arg-type]  (numpy's allow_pickle)
            row = [self.num_timesteps, round(mean_return, 1), round(mean_length, 1), round(time.time() - self.start)]
            with (self.out / "log.csv").open("a", newline="") as file:
                csv.writer(file).writerow(row)
            print(f"step {row[0]}  return {row[1]}  length {row[2]}  {row[3]} s", flush=True)
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Hopper-v5", help="Gymnasium id")
    parser.add_argument("--steps", type=int, default=300_000, help="environment steps")
    parser.add_argument("--every", type=int, default=10_000, help="steps between snapshots")
    parser.add_argument("--width", type=int, default=128, help="units of each of the two hidden layers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for snapshots and log.csv")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "log.csv").write_text("step,return,length,seconds\n")
    torch.set_num_threads(1)
    model = SAC(
        "MlpPolicy", args.env, seed=args.seed, learning_rate=3e-4, batch_size=256, learning_starts=5_000,
        policy_kwargs={"net_arch": [args.width, args.width]}, device="cpu",
    )  # fmt: skip
    model.learn(args.steps, callback=SnapshotCallback(args.env, args.every, args.out))


if __name__ == "__main__":
    main()
