"""Every command and every error of the command line, on models small enough to capture at once."""

from __future__ import annotations

import importlib
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import pytest
import safetensors.torch
import timm
import torch
from click.testing import CliRunner, Result
from PIL import Image
from rich.status import Status

import fxgrad
from fxgrad import installed
from fxgrad.commands import cli, terminal
from fxgrad.data import models, reach
from fxgrad.explainer.run import OnnxExplainer

ROOT = Path(__file__).parents[2]
FACTORIES = """
import torch
from torch import nn

CLASS_NAMES = ["ant", "bee", "cat"]

def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.GELU(), nn.Flatten(), nn.LayerNorm(48), nn.Linear(48, 3))
    model.default_cfg = dict(input_size=(3, 6, 8), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0)
    return model

class Clip(nn.Module):
    # Similarities with texts: the longer a text, the more of the first channel is in it.
    default_cfg = dict(input_size=(3, 6, 8), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0)

    def __init__(self, texts=("a bee",)):
        super().__init__()
        self.register_buffer("texts", torch.tensor([[float(len(text)), 1.0, -1.0] for text in texts]))

    def prompted(self, *texts):
        return Clip(texts)

    def forward(self, x):
        features = nn.functional.normalize(x.mean((2, 3)), dim=-1)
        return features @ nn.functional.normalize(self.texts, dim=-1).T

class Odd(nn.Module):
    def forward(self, x):
        return torch.special.i0(x).flatten(1)

class Probabilities(nn.Module):
    def forward(self, x):
        return x.flatten(1).softmax(-1)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module of factories and a picture in it."""
    (tmp_path / "my_nets.py").write_text(FACTORIES)
    Image.new("RGB", (30, 20), (200, 100, 0)).save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_nets", None)


def run(*arguments: str) -> Result:
    """The command line, as it is called; nothing but an exit may come out of it."""
    result = CliRunner(env={"COLUMNS": "80"}).invoke(cli.main, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def succeed(*arguments: str) -> str:
    """What a command prints; it always fits 80 columns."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == "" and max(map(len, result.stdout.splitlines())) <= 80
    return result.stdout


def refuse(*arguments: str) -> str:
    """The one line that a command gives up with."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "Traceback" not in result.output
    return result.stderr


def test_version() -> None:
    assert succeed("--version").startswith("fxgrad")


@pytest.mark.parametrize(
    "command", [[], ["convert"], ["check"], ["explain"], ["export"], ["flow"], ["patch"], ["run"], ["rules"]]
)
def test_help_has_an_example(command: list[str]) -> None:
    text = succeed(*command, "--help")
    assert f"  {' '.join(['fxgrad', *command])} " in text
    assert "Example" in text


def test_convert(here: Path) -> None:
    text = succeed("convert", "my_nets:net", "--json", "report.json")
    assert text.startswith("my_nets:net: the factory's own weights, input 3 x 6 x 8\n")
    assert "aten.gelu.default" in text and "hold_gate" in text and "source_line" not in text
    rows = json.loads((here / "report.json").read_text())
    assert [row["rule"] for row in rows if row["op"] == "aten.layer_norm.default"] == ["hold_scale"]


def test_convert_details() -> None:
    assert "source_line" in succeed("convert", "my_nets:net", "--details")
    assert "hold_gate" not in succeed("convert", "my_nets:net", "--rules", "gradient")


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", "1e-04"), ("float64", "1e-10"), ("bfloat16", "2e-01")])
def test_check(here: Path, dtype: str, tolerance: str) -> None:
    options = ["--dtype", dtype, "--randomize", "--batch", "3", "--seed", "1", "--json", "check.json"]
    text = succeed("check", "my_nets:net", *options)
    assert f"{dtype}, batch of 3\npassed: forward identical" in text and f"tolerance {tolerance}" in text
    assert "plain gradient, for comparison: completeness error" in text
    found = json.loads((here / "check.json").read_text())
    assert found["passed"] and found["model"] == "my_nets:net"
    assert found["completeness_error"] < found["plain_completeness_error"]
    assert len(found["sources"]) == 3


def test_check_that_fails_exits_with_1() -> None:
    result = run("check", "my_nets:net", "--rules", "gradient")
    assert result.exit_code == 1
    assert "FAILED: forward identical" in result.stdout and "not balanced" in result.stdout
    assert result.stderr == ""


def test_check_of_a_timm_model() -> None:
    assert "timm:test_vit: random weights (seed 0), input 3 x 160 x 160" in succeed(
        "check", "timm:test_vit", "--batch", "1"
    )


def test_rules_of_ones_own(here: Path) -> None:
    result = run("convert", "my_nets:Odd", "--input-size", "3", "4", "4")
    assert result.exit_code == 2 and "aten.i0.default has no row" in result.stderr
    (here / "mine.toml").write_text('[squash]\n"aten.i0" = { carrier = "self" }\n')
    options = ["--input-size", "3", "4", "4", "--rules", "libragrad", "--rules", "mine.toml"]
    assert "secant" in succeed("convert", "my_nets:Odd", *options)


def test_explain(here: Path) -> None:
    text = succeed("explain", "my_nets:net", "cat.png", "--target", "BEE", "-o", "bee.png", "--html", "bee.html")
    assert "target 1 (bee), logit " in text and "completeness error: gradient " in text
    assert "wrote bee.png" in text and "wrote bee.html" in text
    assert (here / "bee.png").read_bytes().startswith(b"\x89PNG")
    page = (here / "bee.html").read_text("utf-8")
    assert "data:image/jpeg;base64," in page and "Check of libragrad" in page and "hold_scale" in page


def test_explain_the_largest_logit_by_default(here: Path) -> None:
    x = models.load_model("my_nets:net").preprocess(Image.open(here / "cat.png"))
    top = int(models.load_model("my_nets:net").model(x).argmax())
    assert f"target {top} (" in succeed("explain", "my_nets:net", "cat.png", "--pool", "2")
    assert (here / "explain.png").exists()


def test_explain_by_another_method(here: Path) -> None:
    text = succeed(
        "explain", "my_nets:net", "cat.png", "--target", "bee", "--method", "fullgrad_plus", "-o", "plus.svg"
    )
    assert "target 1 (bee), logit " in text and ", fullgrad_plus\n" in text
    assert "<svg" in (here / "plus.svg").read_text("utf-8")
    assert "there is no method 'cam'" in refuse("explain", "my_nets:net", "cat.png", "--method", "cam")
    refused = refuse("explain", "my_nets:net", "cat.png", "--method", "attcat")
    assert "attcat needs attention, and none of the model's" in refused


def test_explain_a_prompt(here: Path) -> None:
    text = succeed("explain", "my_nets:Clip", "cat.png", "--prompt", "a red seven", "-o", "seven.png")
    assert "prompt 'a red seven', logit 0." in text and (here / "seven.png").exists()
    both = refuse("explain", "my_nets:Clip", "cat.png", "--prompt", "a bee", "--target", "0")
    assert "--target and --prompt are two ways to say what to explain" in both
    assert "my_nets:net knows no prompts" in refuse("explain", "my_nets:net", "cat.png", "--prompt", "a bee")


def test_explain_refuses_what_it_cannot() -> None:
    assert "no class 'bea'. Close to it: bee." in refuse("explain", "my_nets:net", "cat.png", "--target", "bea")
    assert "the model has 3, numbered 0 to 2" in refuse("explain", "my_nets:net", "cat.png", "--target", "3")
    assert "Pillow cannot read the image my_nets.py" in refuse("explain", "my_nets:net", "my_nets.py")
    assert "No such file" in refuse("explain", "my_nets:net", "dog.png")
    assert "cannot be written" in refuse("explain", "my_nets:net", "cat.png", "-o", "absent/a.png")


def test_export_and_run(here: Path) -> None:
    """A picture's heat map out of onnxruntime is the one that the same preprocessing gives in PyTorch."""
    text = succeed("export", "my_nets:net", "-o", "net.onnx", "--pool", "2")
    assert "inputs input, target; outputs logits, attribution, completeness_error\nwrote net.onnx" in text
    text = succeed("run", "net.onnx", "cat.png", "--target", "BEE", "-o", "bee.png")
    loaded = models.load_model("my_nets:net")
    x = loaded.preprocess(Image.open(here / "cat.png"))
    assert f"target 1 (bee), logit {loaded.model(x)[0, 1]:.4g}" in text and "completeness error: " in text
    assert (here / "bee.png").read_bytes().startswith(b"\x89PNG")
    explainer = OnnxExplainer(here / "net.onnx")
    torch.testing.assert_close(torch.from_numpy(explainer.preprocess(Image.open(here / "cat.png"))), x)
    assert explainer.explain(Image.open(here / "cat.png")).target == int(loaded.model(x).argmax())
    assert "no class 'bea'. Close to it: bee." in refuse("run", "net.onnx", "cat.png", "--target", "bea")
    assert "cannot be written" in refuse("run", "net.onnx", "cat.png", "-o", "absent/a.png")


def test_run_needs_no_torch() -> None:
    succeed("export", "my_nets:net", "-o", "net.onnx")
    said = succeed("run", "net.onnx", "cat.png", "-o", "with.png").replace("with.png", "without.png")
    code = "import sys; sys.modules['torch'] = None; from fxgrad.commands.cli import main; main()"
    call = [sys.executable, "-c", code, "run", "net.onnx", "cat.png", "-o", "without.png"]
    assert subprocess.run(call, capture_output=True, text=True, check=True).stdout == said
    assert Path("without.png").read_bytes() == Path("with.png").read_bytes()


def test_export_of_several_policies_with_rounded_weights(here: Path) -> None:
    wanted = "outputs logits, attribution_libragrad, attribution_gradient wrote net.onnx"
    options = "--policies", "libragrad,gradient", "--weights", "float16", "--option", "channels=None"
    said = succeed("export", "my_nets:net", "-o", "net.onnx", "--no-completeness", *options)
    assert wanted in " ".join(said.split())
    explainer = OnnxExplainer(here / "net.onnx")
    picture = Image.open(here / "cat.png")
    libra, plain = (explainer.explain(picture, 1, policy) for policy in explainer.policies)
    assert libra.attribution.ndim == 3 and not (libra.attribution == plain.attribution).all()


def test_export_refuses_what_it_cannot() -> None:
    assert "net.txt must end in one of .onnx, .pt2, .aoti" in refuse("export", "my_nets:net", "-o", "net.txt")
    assert "my_nets.py is no explainer in ONNX; it is a text file" in refuse("run", "my_nets.py", "cat.png")
    for option, said in (
        (["--method", "genatt"], "genatt needs attention, and none of the model's 3 blocks"),
        (["--option", "at='tokens'"], "--option at=... cannot be chosen for a file"),
        (["--policies", "libragrad,libra"], "libra"),
        (["--weights", "int8", "--dtype", "float64"], "weights='int8' is for models in float32"),
    ):
        assert said in refuse("export", "my_nets:net", "-o", "net.onnx", *option)


def test_a_model_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "'resnet18' is none of these" in refuse("convert", "resnet18")
    assert "timm has no model 'resnet19'" in refuse("check", "timm:resnet19")
    assert "--input-size C H W" in refuse("convert", "my_nets:Odd")

    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise OSError("name or service not known")

    monkeypatch.setattr(timm, "create_model", unreachable)
    monkeypatch.setattr(reach, "hub_reachable", lambda: False)
    message = refuse("convert", "timm:test_vit", "--pretrained")
    assert "out of reach" in message and "leave out --pretrained for random weights" in message


def test_checkpoint(here: Path) -> None:
    safetensors.torch.save_file({"0.weight": torch.zeros(1)}, "w.safetensors")
    assert "does not fit the model" in refuse("convert", "my_nets:net", "--checkpoint", "w.safetensors")
    safetensors.torch.save_file(models.load_model("my_nets:net").model.state_dict(), "w.safetensors")
    assert "w.safetensors weights" in succeed("convert", "my_nets:net", "--checkpoint", "w.safetensors")


def test_errors_of_the_pass_are_one_message(here: Path) -> None:
    result = run("convert", "my_nets:Probabilities", "--input-size", "3", "4", "4")
    assert result.exit_code == 2 and result.stderr.startswith("error: ")
    assert "absent/report.json cannot be written" in refuse("convert", "my_nets:net", "--json", "absent/report.json")
    assert "no policy 'nonsense'" in refuse("convert", "my_nets:net", "--rules", "nonsense")


def test_rules() -> None:
    text = succeed("rules", "GELU")
    assert "aten.gelu" in text and "gated_activation" in text and "hold_gate" in text and "aten.relu" not in text
    assert "aten.layer_norm" in succeed("rules", "normalization")
    everything = succeed("rules")
    assert "piecewise_linear" in everything and "aten.relu" in everything and "libragrad: Mehri" in everything


def test_rules_of_a_policy() -> None:
    text = succeed("rules", "--policy", "libragrad")
    assert "arXiv:2411.16760" in text and "hold_weights" in text
    assert "native" in succeed("rules", "gelu", "--policy", "gradient")


def test_rules_that_there_are_not() -> None:
    assert "'gleu' in its name. Close to it: glu, gelu" in refuse("rules", "gleu")
    assert "Close to it: nothing" in refuse("rules", "qqqqzzzz")
    assert "no policy 'libra'" in refuse("rules", "--policy", "libra")


def test_without_click_a_hint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "fxgrad.commands.cli")
    monkeypatch.setitem(sys.modules, "click", None)
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module("fxgrad.commands.cli")
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert 'pip install "fxgrad[cli]"' in message and message.count("\n") == 1


def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.stage("waiting"):
        pass
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with terminal.stage("waiting"):
        pass
    out, err = capsys.readouterr()
    assert out == "" and "waiting ..." in err


def test_progress_says_what_is_being_done(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setattr(Status, "update", lambda self, said: shown.append(said))
    loaded = models.load_model("my_nets:net")
    with terminal.stage("converting"):
        libra = fxgrad.convert(loaded.model, (loaded.example(),))
    steps = ["tracing the model", "making ", "choosing a backward for each of ", "comparing the outputs on the example"]
    assert [next(step for step in steps if step in said) for said in shown] == steps
    assert all(said.startswith("converting: ") and said.endswith(" ...") for said in shown)
    with terminal.stage("exporting"):
        fxgrad.export_explainer(libra, (loaded.example(),), "net.onnx")
    assert shown[-1] == "exporting: writing ONNX ..." and "exporting: tracing the attribution ..." in shown
    assert not logging.getLogger("fxgrad").handlers


def loaded_by(*arguments: str) -> set[str]:
    """The modules that a fresh Python has imported by the end."""
    code = f"import sys; {arguments[0]}; sys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stderr.split())


def test_import_loads_nothing_that_is_not_asked_for() -> None:
    modules = loaded_by("import fxgrad; assert 'convert' in dir(fxgrad) and '__version__' in dir(fxgrad)")
    assert "fxgrad" in modules and not modules & {"torch", "numpy", "click", "fxgrad.pipeline"}
    modules = loaded_by("from fxgrad import convert, methods; assert methods.METHODS and callable(convert)")
    assert "torch" in modules and not modules & {"click", "matplotlib", "timm", "PIL", "fxgrad.proof.check"}


def test_help_is_there_without_torch() -> None:
    call = "from fxgrad.commands.cli import main; main(['--help'], standalone_mode=False)"
    assert not loaded_by(call) & {"torch", "numpy", "timm", "matplotlib", "rich", "PIL", "fxgrad.data"}
    call = "from fxgrad.commands.cli import main; main(['rules', '--help'], standalone_mode=False)"
    assert not loaded_by(call) & {"timm", "matplotlib", "PIL", "fxgrad.data"}


def test_the_list_of_commands_says_what_their_own_help_says() -> None:
    context = click.Context(cli.main)
    text = " ".join(succeed("--help").split())
    for name, says in cli.COMMANDS.items():
        command = cli.main.get_command(context, name)
        assert command is not None and command.name == name and command.help is not None
        assert " ".join(command.help.split("\n\n")[0].split()) == says and says in text
    assert "No such command 'explian'" in run("explian").output


def test_every_command_for_models_takes_the_same_options() -> None:
    context = click.Context(cli.main)
    for name in ("convert", "check", "explain", "export", "evaluate", "flow", "patch"):
        command = cli.main.get_command(context, name)
        assert command is not None
        names = {option for parameter in command.params for option in parameter.opts}
        assert {"--pretrained", "--checkpoint", "--input-size"} <= names, name
        assert ("--rules" in names) != (name == "evaluate"), name  # which compares policies


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "fxgrad.commands.run", raising=False)
    monkeypatch.setitem(sys.modules, "fxgrad.explainer.run", None)
    result = CliRunner().invoke(cli.main, ["run", "a.onnx", "cat.png"])
    assert result.exit_code == 2 and 'pip install "fxgrad[cli]"' in result.stderr and result.stderr.count("\n") == 1


def test_the_version_is_the_package_s_or_says_that_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fxgrad.__version__ == metadata.version("fxgrad")
    assert fxgrad.__version__ in succeed("--version")

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    assert installed.version() == "unknown (run from source, not installed)"


def test_public_names() -> None:
    assert set(fxgrad._HOMES) == set(fxgrad.__all__) <= set(dir(fxgrad))
    for name in fxgrad.__all__:
        assert not isinstance(getattr(fxgrad, name), type(fxgrad)), name
    with pytest.raises(AttributeError, match="module 'fxgrad' has no attribute 'nonsense'"):
        fxgrad.nonsense  # noqa: B018
