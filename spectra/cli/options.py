"""The options that several commands share; each is defined once."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from spectra import defaults
from spectra.cli.config import read_config
from spectra.cli.trust import TRUST, trusted_value
from spectra.curvature.matrices import KERNELS, MATRICES
from spectra.defaults import PRECISIONS
from spectra.quoting import quoted

LARGEST = 2**63 - 1  # of int64
LONGEST = 4000  # characters; Python converts at most 4,300 digits to an integer


class Positive(click.ParamType):
    """A finite number above zero."""

    name = "number"
    wanted = "a finite number above 0"

    def convert(self, value, param, ctx):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and self.holds(number)):
            self.fail(f"{quoted(value, 40)!r} is not {self.wanted}.", param, ctx)
        return number

    def holds(self, number: float) -> bool:
        return number > 0


class NonNegative(Positive):
    """A finite number, zero or more."""

    wanted = "a finite number >= 0"

    def holds(self, number: float) -> bool:
        return number >= 0


class Inches(Positive):
    """A width of a figure at which its text can be read."""

    wanted = "a number of inches from 3 to 40"

    def holds(self, number: float) -> bool:
        return 3 <= number <= 40


class Count(click.IntRange):
    """An integer from `min` to `most`; the help does not show `most`, by default the largest int64."""

    name = "integer"

    def __init__(self, min: int, max: int | None = None, most: int = LARGEST):
        super().__init__(min, max)
        self.most = most

    def convert(self, value, param, ctx):
        if len(str(value).strip()) > LONGEST or (number := super().convert(value, param, ctx)) > self.most:
            self.fail(f"{quoted(value, 40)} is too large; give a number of at most {self.most:,}.", param, ctx)
        return number


class Seed(click.ParamType):
    """An integer that is valid as a seed of torch and fits int64; the help does not show its range."""

    name = "integer"

    def convert(self, value, param, ctx):
        return Count(min=0).convert(value, param, ctx)


class Size(click.ParamType):
    """A number of bytes, such as 2GiB, 500MB or 1000000."""

    name = "size"

    def convert(self, value, param, ctx):
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d*)?) *([kmgt]?)(i?)b?", str(value).strip().lower())
        if not match:
            self.fail(
                f"{quoted(value, 40)!r} is not a valid size; write it as 2GiB, 500MB or a number of bytes.", param, ctx
            )
        number, prefix, binary = match.groups()
        size = float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix or " ")
        if size > LARGEST:
            self.fail(f"{quoted(value, 40)!r} is too large; write it as 2GiB, or leave it out.", param, ctx)
        return int(size)


class Device(click.ParamType):
    """The name of a device; torch checks later whether the machine has it."""

    name = "device"
    names = ("auto", "cpu", "cuda", "cuda:N", "mps")

    def convert(self, value, param, ctx):
        name = str(value)
        if name not in self.names[:3] + self.names[4:] and not re.fullmatch(r"cuda:(0|[1-9]\d{0,2})", name):
            self.fail(f"{quoted(value, 40)!r} is not one of {', '.join(self.names)}.", param, ctx)
        return name

    def get_metavar(self, param, ctx):
        return f"[{'|'.join(self.names)}]"


class Named(click.Path):
    """A path that is not empty; otherwise an unset shell variable would mean the current directory."""

    def convert(self, value, param, ctx):
        if value == "":
            self.fail("the path is empty; name one, or leave the option out.", param, ctx)
        return super().convert(value, param, ctx)


def files(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete a path, with which most names of models and data begin."""
    return [CompletionItem(incomplete, type="file")]


SPEC = {"metavar": "SPEC", "callback": trusted_value, "shell_complete": files}
DATA = {
    **SPEC,
    "help": "The data set: digits (included), a file.npz or file.safetensors, text:FILE?length=256, a folder of images, a folder saved by the datasets library, torchvision:NAME, or your own as file.py:name or package.module:name.",
}
OPERATOR = {
    **SPEC,
    "help": "A symmetric matrix to analyse instead of a network: file.npy, file.npz, file.mtx, file.py:name or package.module:name. Arguments follow as ?key=value.",
}


class OfNetwork(click.Option):
    """An option that describes a network; with --operator, which is declared before it, it is not required."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        if ctx.params.get("operator") and self.value_is_missing(value):
            return None
        try:
            return super().process_value(ctx, value)
        except click.MissingParameter as error:
            if self.name == "model" and any(other.name == "operator" for other in ctx.command.params):
                error.param_hint = f"{self.get_error_hint(ctx)}, or '--operator' for a matrix in place of a network"
            raise


WEIGHTS = "The trained weights: a .pt, .pth, .ckpt, .bin or .safetensors file, an .index.json, or a folder (also of a PEFT adapter)."
AS_BUILT = "  [default: the weights that the model is built with]"
CHECKPOINT = {"metavar": "PATH", "type": Named(path_type=Path)}
BEFORE_DATA = [
    click.option("--model", cls=OfNetwork, **SPEC, required=True, help="The network: file.py:name or package.module:name of a function that builds it, torchvision:NAME, timm:NAME, transformers:CLASS or a file.pt2. Arguments follow as ?key=value."),
    click.option("--checkpoint", **CHECKPOINT, help=f"{WEIGHTS}{AS_BUILT}"),
    click.option("--checkpoint-key", metavar="KEY", help="The entry of the checkpoint that holds the weights, or the prefix of their names. Needed only if there are several."),
]  # fmt: skip

AFTER_DATA = [
    click.option("--transform", **SPEC, help="A transform of each input, as file.py:name.  [default: for images the transform that belongs to the model's pretrained weights, else conversion to a tensor]"),
    click.option("--output", metavar="KEY", help="The entry of the model's output to use, if it is a dict or a tuple."),
    click.option("--loss", **SPEC, default="cross_entropy", show_default=True, help="The loss: cross_entropy, mse, huber and others, model (the model's own loss), or file.py:name. Arguments follow as ?key=value."),
]  # fmt: skip
AFTER_LOSS = [
    click.option("--samples", metavar="N", type=Count(min=1), help="Use N examples, drawn at random from the data.  [default: all]"),
    click.option("--batch-size", metavar="B", type=Count(min=1), help="Number of examples processed at a time. It changes speed and memory, but no result except that of fisher-batch.  [default: as many as memory allows]"),
    click.option("--memory", metavar="SIZE", type=Size(), help="Memory for matrix-vector products, beyond model and data (e.g. 2GiB).  [default: a quarter of the device's]"),
    click.option("--basis", type=click.Choice(["auto", "device", "host"]), default="auto", show_default=True, help="Memory in which Lanczos vectors are stored. auto uses the host's memory if a quarter of the device's is too little."),
    click.option("--recompute-activations/--no-recompute-activations", default=None, help="Recompute activations in the backward pass, which saves memory and costs time.  [default: only if a single example does not fit otherwise]"),
    click.option("--params", metavar="GLOB", multiple=True, help="Restrict the matrix to the parameters whose names match this pattern, e.g. 'layer4.*'. Repeatable.  [default: all parameters]"),
]  # fmt: skip

BEFORE_DTYPE = [
    click.option("--mc-samples", metavar="S", type=Count(min=1, most=2**23 - 1), default=1, show_default=True, help="Number of labels that fisher-mc draws for each example."),
    click.option("--weight-decay", metavar="X", type=NonNegative(), default=0.0, show_default=True, help="Add X |theta|^2 / 2 to the loss."),
    click.option("--device", type=Device(), default="auto", show_default=True, help="Device to compute on. auto is CUDA if there is a GPU, else the CPU. mps, the GPU of a Mac, has float32 only."),
]  # fmt: skip
DTYPE = {"type": click.Choice(["float32", "float64"]), "default": "float32", "show_default": True}
OF_VECTORS = "Floating-point type of parameters, data and vectors."
KEPT = " A matrix given by --operator keeps its own type unless this is given."
SEED = click.option("--seed", metavar="S", type=Seed(), default=0, show_default=True, help="Random seed.")

DEFLATE = click.option("--deflate", metavar="RESULT", type=Named(path_type=Path), help="Project out the eigenvectors of this result of eig.  [default: the result of eig in --out, if there is one]")  # fmt: skip
EIGENVECTORS = click.option("--eigenvectors", metavar="RESULT", type=Named(path_type=Path), help="Take eigenvectors from this result of eig instead of computing them.  [default: the result of eig in --out, if there is one]")  # fmt: skip
MAX_PRODUCTS = click.option("--max-products", metavar="N", type=Count(min=1), help="Stop after N matrix-vector products.")  # fmt: skip
NO_CHECK = click.option(
    "--no-check", is_flag=True, help="Skip the check that compares derivatives with finite differences."
)
PRECISION = click.option("--precision", type=click.Choice(PRECISIONS), default=defaults.IEEE, show_default=True, help="Precision of matrix-vector products: ieee (that of --dtype), tf32 (only on a GPU) or bf16. The noise of tf32 and bf16 is measured and reported with the result.")  # fmt: skip
PRODUCTS = click.option("--products", type=click.Choice(defaults.PRODUCTS), default=defaults.EXACT, show_default=True, help="How products with the Hessian are computed: exactly, or as central (finite-difference) or forward differences of gradients. The error of differences is measured and reported with the result.")  # fmt: skip
DIFFERENCE_STEP = click.option("--difference-step", metavar="R", type=Positive(), help="Displacement of the parameters in finite differences, relative to their norm.  [default: the best for --dtype]")  # fmt: skip
PRECONDITION = click.option("--precondition", **SPEC, help="Analyse P^-1/2 A P^-1/2, where P is the preconditioner of an adaptive optimizer such as Adam. Name P as optimizer (from the state in --checkpoint), a file or folder with the optimizer's state, a diagonal in a .npz or .safetensors file, or file.py:name. Arguments follow as ?key=value.")  # fmt: skip
COMPILE = click.option("--compile/--no-compile", default=None, help="Compile matrix-vector products with torch.compile.  [default: on a GPU, if that is expected to save time]")  # fmt: skip
OUT = click.option("--out", metavar="DIR", type=Named(path_type=Path, file_okay=False), help="Directory to write results to.")  # fmt: skip
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
WIDTH = click.option("--width", metavar="INCHES", type=Inches(), default=6.5, show_default=True, help="Width of the figure. 3.25 fits a column of a paper, 6.5 a page.")  # fmt: skip
CONFIG = click.option("--config", metavar="FILE", type=Named(path_type=Path), is_eager=True, expose_value=False, callback=read_config, help="Read options from a .toml file, or from the .json of an earlier result. The command line overrides them.")  # fmt: skip


SAVE_EVERY = click.option("--save-every", metavar="MINUTES", type=Positive(), default=defaults.SAVE_EVERY, show_default=True, help="Minutes between saves to --out. An interrupted run resumes from the last.")  # fmt: skip


def stacked(*options: Callable) -> Callable:
    """Combine decorators that add options; the help lists the options in this order."""

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class Matrix(click.Choice):
    """The name of a registered matrix, also of an installed package, or one of `more`; the register is read when used."""

    name = "choice"
    choices: Any = property(lambda self: (*MATRICES, *self.more), lambda self, _: None)

    def __init__(self, more: Iterable[str] = ()):
        self.more = more
        super().__init__(())

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The name of the matrix. Fails for a list of names, and for one that is not there."""
        if isinstance(value, str) and "," in value:
            several = " ".join(f"--curvature {name.strip()}" for name in value.split(","))
            self.fail(f"'{value}' is several names; write {several}", param, ctx)
        return super().convert(value, param, ctx)


class Curvature(click.Option):
    """The option --curvature; its help lists the matrices that are registered when it is shown."""

    help: Any = property(
        lambda self: f"Matrix to analyse: {', '.join(MATRICES)}{self.others} Repeatable.", lambda self, _: None
    )

    @property
    def others(self) -> str:
        """The end of the list of matrices, with those that are not over parameters."""
        kernels = ", ".join(self.type.more) if isinstance(self.type, Matrix) else ""
        return f"; or {kernels}, which is over examples instead of parameters." if kernels else "."


def loss_part(several: bool) -> Callable:
    """The option --loss-part: one part of a loss to analyse instead of the sum, or `several` to compare with the sum."""
    which = (
        "A part of the loss to compare with the sum of all parts, if the loss returns a mapping. Repeatable."
        if several
        else "The part of the loss to analyse, if the loss returns a mapping.  [default: the sum of all parts]"
    )
    return click.option("--loss-part", metavar="NAME", multiple=several, help=which)


def with_data(
    *more: Callable,
    curvature: Sequence[str] = ("hessian",),
    kernels: Iterable[str] = (),
    parts: bool = False,
    operators: int = 0,
    checkpoints: Callable | None = None,
    **settings,
) -> Callable:
    """A decorator that adds the options of a problem, and the options `more` before --json.

    Args:
        more: decorators that add further options.
        curvature: the default of --curvature.
        kernels: names of matrices over examples that --curvature takes in addition to the registered ones.
        parts: whether --loss-part is repeatable.
        operators: how many --operator may replace the problem: 0, 1, or 2 for any number.
        checkpoints: the callback of --checkpoint, which it makes repeatable.
        settings: further settings of --data.
    """
    data = click.option("--data", cls=OfNetwork, **DATA, **settings)
    repeatable = {"multiple": True, "help": f"{OPERATOR['help']} Repeatable."} if operators > 1 else {}
    operator = [click.option("--operator", **OPERATOR | repeatable)] if operators else []
    before = list(BEFORE_DATA)
    if checkpoints:
        many = {"multiple": True, "callback": checkpoints, "help": f"{WEIGHTS} Repeatable.{AS_BUILT}"}
        before[1] = click.option("--checkpoint", **CHECKPOINT, **many)
    dtype = click.option("--dtype", **DTYPE, help=OF_VECTORS + KEPT * bool(operators))
    named = click.option("--curvature", cls=Curvature, metavar="NAME", multiple=True, default=curvature, show_default=True, type=Matrix(kernels))  # fmt: skip
    return stacked(
        *operator,
        *before,
        data,
        *AFTER_DATA,
        loss_part(parts),
        *AFTER_LOSS,
        named,
        *BEFORE_DTYPE,
        dtype,
        SEED,
        MAX_PRODUCTS,
        NO_CHECK,
        COMPILE,
        OUT,
        *more,
        JSON,
        CONFIG,
        TRUST,
    )


WRT = click.option("--wrt", metavar="WHAT", default="parameters", show_default=True, help="Differentiate with respect to parameters, or to inputs, which gives one matrix for each example. inputs:NAME chooses one of several inputs.")  # fmt: skip

problem_and_output = with_data(
    PRECONDITION, PRECISION, PRODUCTS, DIFFERENCE_STEP, SAVE_EVERY, WRT, kernels=KERNELS, required=True, operators=1
)
model_and_output = with_data()
