"""Only classes of allowed packages are built."""

import sys

import pytest

from trajectory_transformer.app import instantiate
from trajectory_transformer.app.instantiation import check_targets
from trajectory_transformer.errors import UserError


class TestTargets:
    def test_an_allowed_class_is_built(self) -> None:
        built = instantiate({"stop": {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/loss"}})
        assert built["stop"].monitor == "val/loss"

    def test_nested_targets_are_built_first(self) -> None:
        config = {"_target_": "torch.nn.ModuleList", "modules": [{"_target_": "torch.nn.Identity"}]}
        assert type(instantiate(config)[0]).__name__ == "Identity"

    @pytest.mark.parametrize(
        "target",
        [
            "os.system",
            "builtins.eval",
            "torch.load",
            "torch.hub.load",
            "subprocess.Popen",
            "torch.nnx.Linear",
            "lightning.pytorch.trainer.trainer.os.system",
            "torch.nn.modules.module.OrderedDict",
            "torch.nn.functional.relu",
            "lightning.pytorch.callbacks.NoSuchClass",
        ],
    )
    @pytest.mark.parametrize("nested", [False, True])
    def test_anything_else_is_refused(self, target: str, nested: bool) -> None:
        config: object = {"_target_": target}
        if nested:
            config = {"_target_": "torch.nn.ModuleList", "modules": [config]}
        with pytest.raises(UserError, match=target):
            instantiate(config, "trainer.callbacks")

    def test_a_wrong_argument_is_named(self) -> None:
        with pytest.raises(UserError, match="colour"):
            instantiate({"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1, "colour": 2})

    def test_a_check_imports_nothing(self) -> None:
        check_targets({"a": {"_target_": "torchmetrics.no.such.module"}}, "place")
        assert "torchmetrics.no" not in sys.modules
