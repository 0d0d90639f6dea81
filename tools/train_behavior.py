"""Train the behaviour policies that the embedded MuJoCo recipes simulate (Stable-Baselines3).

The algorithm is soft actor-critic, or proximal policy optimisation, which needs more but faster steps. Requires the
``behavior`` extra. Writes one ``.npz`` of plain arrays for each snapshot, and a CSV log beside them:

    python -m tools.train_behavior --env Hopper-v5 --steps 300000 --out logs/behavior
"""

import argparse
import csv
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO, SAC  # pyright: ignore[reportMissingImports]  (the behavior extra)
from stable_baselines3.common.callbacks import BaseCallback  # pyright: ignore[reportMissingImports]  (as above)
from stable_baselines3.common.env_util import make_vec_env  # pyright: ignore[reportMissingImports]  (as above)
from stable_baselines3.common.vec_env import VecNormalize  # pyright: ignore[reportMissingImports]  (as above)

from trajectory_transformer.simulation.policies import Arrays, action_distribution, bounded

# Settings of the RL Baselines3 Zoo for Walker2d.
PPO_SETTINGS = {
    "n_steps": 512, "batch_size": 32, "n_epochs": 20, "learning_rate": 5.05041e-5, "gamma": 0.99, "gae_lambda": 0.95,
    "ent_coef": 0.000585045, "clip_range": 0.1, "max_grad_norm": 1.0, "vf_coef": 0.871923,
}  # fmt: skip


def actor_arrays(model: SAC) -> Arrays:
    """Return the tanh-Gaussian actor as float32 arrays: hidden weights (out, in) and biases, mean and log-std heads."""
    actor = model.actor
    layers = [layer for layer in actor.latent_pi if isinstance(layer, torch.nn.Linear)]
    named = {f"hidden_{i}": layer for i, layer in enumerate(layers)} | {"mean": actor.mu, "log_std": actor.log_std}
    arrays = {}
    for name, layer in named.items():
        arrays[f"{name}_weight"] = layer.weight.detach().numpy().astype(np.float32)
        arrays[f"{name}_bias"] = layer.bias.detach().numpy().astype(np.float32)
    return arrays


def normalized_actor_arrays(model: PPO) -> Arrays:
    """Return the Gaussian actor as float32 arrays, with the observations' normalisation merged into the first layer.

    Arrays are those of :func:`actor_arrays`, but ``log_std`` (action_dim,) does not depend on the observation, and
    actions are not squashed. Unlike in training, normalised observations are not clipped at 10 deviations.
    """
    layers = [layer for layer in model.policy.mlp_extractor.policy_net if isinstance(layer, torch.nn.Linear)]
    named = {f"hidden_{i}": layer for i, layer in enumerate(layers)} | {"mean": model.policy.action_net}
    arrays = {"log_std": model.policy.log_std.detach().numpy().astype(np.float32)}
    for name, layer in named.items():
        arrays[f"{name}_weight"] = layer.weight.detach().numpy().astype(np.float64)
        arrays[f"{name}_bias"] = layer.bias.detach().numpy().astype(np.float64)
    normalization = model.get_vec_normalize_env()
    statistics = normalization.obs_rms
    first = arrays["hidden_0_weight"] / np.sqrt(statistics.var + normalization.epsilon)
    arrays["hidden_0_bias"] = arrays["hidden_0_bias"] - first @ statistics.mean
    arrays["hidden_0_weight"] = first
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def evaluate(policy: Arrays, env_id: str, episodes: int) -> tuple[float, float]:
    """Return the mean return and mean length of ``episodes`` deterministic episodes (seeds 10000, 10001, …)."""
    env = gym.make(env_id)
    returns, lengths = [], []
    for episode in range(episodes):
        observation, _ = env.reset(seed=10_000 + episode)
        total, steps, done = 0.0, 0, False
        while not done:
            action = bounded(policy, action_distribution(policy, observation)[0])
            observation, reward, terminated, truncated, _ = env.step(action)
            total, steps, done = total + float(reward), steps + 1, terminated or truncated
        returns.append(total)
        lengths.append(steps)
    env.close()
    return float(np.mean(returns)), float(np.mean(lengths))


class SnapshotCallback(BaseCallback):
    """Callback that, every ``every`` steps, evaluates, writes the actor's arrays and appends a row to ``log.csv``."""

    def __init__(self, env_id: str, every: int, out: Path) -> None:
        super().__init__()
        self.env_id, self.every, self.out = env_id, every, out
        self.start = time.time()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            policy = actor_arrays(self.model) if isinstance(self.model, SAC) else normalized_actor_arrays(self.model)
            mean_return, mean_length = evaluate(policy, self.env_id, episodes=5)
            np.savez(self.out / f"step_{self.num_timesteps:07d}.npz", **policy)  # type: ignore[arg-type]  (numpy's allow_pickle)
            row = [self.num_timesteps, round(mean_return, 1), round(mean_length, 1), round(time.time() - self.start)]
            with (self.out / "log.csv").open("a", newline="") as file:
                csv.writer(file).writerow(row)
            print(f"step {row[0]}  return {row[1]}  length {row[2]}  {row[3]} s", flush=True)
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Hopper-v5", help="Gymnasium id")
    parser.add_argument("--algorithm", choices=("sac", "ppo"), default="sac")
    parser.add_argument("--steps", type=int, default=300_000, help="environment steps")
    parser.add_argument("--every", type=int, default=10_000, help="steps between snapshots")
    parser.add_argument("--width", type=int, default=128, help="units of each of the two hidden layers (sac)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for snapshots and log.csv")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "log.csv").write_text("step,return,length,seconds\n")
    torch.set_num_threads(1)
    if args.algorithm == "sac":
        model = SAC(
            "MlpPolicy", args.env, seed=args.seed, learning_rate=3e-4, batch_size=256, learning_starts=5_000,
            policy_kwargs={"net_arch": [args.width, args.width]}, device="cpu",
        )  # fmt: skip
    else:
        environment = VecNormalize(make_vec_env(args.env, seed=args.seed), gamma=PPO_SETTINGS["gamma"])
        model = PPO("MlpPolicy", environment, seed=args.seed, device="cpu", **PPO_SETTINGS)
    model.learn(args.steps, callback=SnapshotCallback(args.env, args.every, args.out))


if __name__ == "__main__":
    main()
