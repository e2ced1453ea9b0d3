"""Every option, written once; commands stack those they take."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from spectra import defaults
from spectra.cli.config import read_config
from spectra.cli.trust import TRUST, vouched
from spectra.curvature.matrices import KERNELS, MATRICES
from spectra.defaults import PRECISIONS
from spectra.quoting import quoted

LARGEST = 2**63 - 1  # that int64 holds
LONGEST = 4000  # characters; of more than 4,300 digits Python makes no integer


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


class Count(click.IntRange):
    """A whole number from `min` on that int64 holds; that bound, or `most`, is not in the help: it would be noise."""

    def __init__(self, min: int, max: int | None = None, most: int = LARGEST):
        super().__init__(min, max)
        self.most = most

    def convert(self, value, param, ctx):
        if len(str(value).strip()) > LONGEST or (number := super().convert(value, param, ctx)) > self.most:
            self.fail(f"{quoted(value, 40)} is beyond all bounds; give a smaller number.", param, ctx)
        return number


class Seed(click.ParamType):
    """An integer that torch's generators and int64 both hold; no range in the help, where it would be noise."""

    name = "integer"

    def convert(self, value, param, ctx):
        return Count(min=0).convert(value, param, ctx)


class Size(click.ParamType):
    """Bytes, as 2GiB, 500MB or a bare number."""

    name = "size"

    def convert(self, value, param, ctx):
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d*)?) *([kmgt]?)(i?)b?", str(value).strip().lower())
        if not match:
            self.fail(f"{value!r} is no size; write it as 2GiB, 500MB or a number of bytes.", param, ctx)
        number, prefix, binary = match.groups()
        size = float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix or " ")
        if size > LARGEST:
            self.fail(f"{quoted(value, 40)!r} is beyond all memory; write it as 2GiB, or leave it out.", param, ctx)
        return int(size)


class Device(click.ParamType):
    """The name of a device, of CUDA's also by number. Whether it is there, torch tells later."""

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
    """A path that is not empty: an unset variable of the shell would else name the current directory."""

    def convert(self, value, param, ctx):
        if value == "":
            self.fail("the path is empty; name one, or leave the option out.", param, ctx)
        return super().convert(value, param, ctx)


DATA = {
    "metavar": "SPEC",
    "callback": vouched,
    "help": "digits, file.npz or .safetensors, text:FILE?length=256, a folder of images or of datasets, file.py:name, package.module:name or torchvision:NAME.",
}
OPERATOR = {
    "metavar": "SPEC",
    "callback": vouched,
    "help": "A symmetric matrix in place of a network: file.npy, .npz, .mtx, file.py:name or package.module:name; options as ?key=value.",
}


class OfNetwork(click.Option):
    """An option that names a part of a network, and is not needed beside --operator, which is declared before it."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        if ctx.params.get("operator") and self.value_is_missing(value):
            return None
        try:
            return super().process_value(ctx, value)
        except click.MissingParameter as error:
            if self.name == "model" and any(other.name == "operator" for other in ctx.command.params):
                error.param_hint = f"{self.get_error_hint(ctx)}, or '--operator' for a matrix in place of a network"
            raise


WEIGHTS = "Weights: .pt .pth .ckpt .bin .safetensors, an .index.json, or a folder, also of a PEFT adapter; else the model as built."  # fmt: skip
CHECKPOINT = {"metavar": "PATH", "type": Named(path_type=Path)}
BEFORE_DATA = [
    click.option("--model", cls=OfNetwork, metavar="SPEC", required=True, callback=vouched, help="file.py:name, package.module:name, torchvision:NAME, timm:NAME, transformers:CLASS or a file.pt2; options as ?key=value."),
    click.option("--checkpoint", **CHECKPOINT, help=WEIGHTS),
    click.option("--checkpoint-key", metavar="KEY", help="Which entry of the checkpoint, or prefix of its names, where several would do."),
]  # fmt: skip

AFTER_DATA = [
    click.option("--transform", metavar="SPEC", callback=vouched, help="file.py:name, applied to x.  [default: for images the transforms of the model's weights, or to tensor]"),
    click.option("--output", metavar="KEY", help="Which entry of the model's output, where it is a dict or tuple."),
    click.option("--loss", metavar="SPEC", default="cross_entropy", show_default=True, callback=vouched, help="cross_entropy, mse, huber, ..., model (its own loss), or file.py:name; options as ?key=value."),
]  # fmt: skip
AFTER_LOSS = [
    click.option("--samples", metavar="N", type=Count(min=1), help="Use N examples, chosen by the seed.  [default: all]"),
    click.option("--batch-size", metavar="B", type=Count(min=1), help="Examples at a time; changes no number but those of fisher-batch.  [default: as memory allows]"),
    click.option("--memory", metavar="SIZE", type=Size(), help="What products may take besides model and data, as 2GiB.  [default: a quarter of the device's]"),
    click.option("--basis", type=click.Choice(["auto", "device", "host"]), default="auto", show_default=True, help="Which memory holds a Lanczos basis, the device's or its host's; auto: the host's where a quarter of the device's is too little."),
    click.option("--recompute-activations/--no-recompute-activations", default=None, help="Whether derivatives compute blocks of the model anew: less memory, more time.  [default: where one example does not fit else]"),
    click.option("--params", metavar="GLOB", multiple=True, help="Only parameters whose names match; repeatable.  [default: all]"),
]  # fmt: skip

NUMBERS = [
    click.option("--mc-samples", metavar="S", type=Count(min=1, most=2**23 - 1), default=1, show_default=True, help="Labels drawn for each example by fisher-mc."),
    click.option("--weight-decay", metavar="X", type=NonNegative(), default=0.0, show_default=True, help="Adds X |theta|^2 / 2 to the loss."),
    click.option("--device", type=Device(), default="auto", show_default=True, help="Where to compute; auto is CUDA where there is a card, else the CPU. mps is a Mac's GPU, for float32 alone."),
    click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True, help="Of parameters, data and vectors; an operator keeps its own."),
    click.option("--seed", metavar="S", type=Seed(), default=0, show_default=True, help="Of all that is drawn at random."),
]  # fmt: skip

DEFLATE = click.option("--deflate", metavar="RESULT", type=Named(path_type=Path), help="Project out the eigenvectors of this result of eig.  [default: those in --out]")  # fmt: skip
EIGENVECTORS = click.option("--eigenvectors", metavar="RESULT", type=Named(path_type=Path), help="Take eigenvectors from this result of eig.  [default: those in --out]")  # fmt: skip
MAX_PRODUCTS = click.option("--max-products", metavar="N", type=Count(min=1), help="Stop after N products of a matrix with a vector.")  # fmt: skip
NO_CHECK = click.option("--no-check", is_flag=True, help="Do not compare derivatives with finite differences first.")
PRECISION = click.option("--precision", type=click.Choice(PRECISIONS), default=defaults.IEEE, show_default=True, help="Precision of products; tf32 needs a GPU. The noise of tf32 and bf16 is measured and stands beside the result.")  # fmt: skip
PRODUCTS = click.option("--products", type=click.Choice(defaults.PRODUCTS), default=defaults.EXACT, show_default=True, help="How products with the Hessian are made: exactly, or as central or forward differences of gradients, whose error is measured and stands beside the result.")  # fmt: skip
DIFFERENCE_STEP = click.option("--difference-step", metavar="R", type=Positive(), help="How far differences displace the parameters, over their norm.  [default: the best for the dtype]")  # fmt: skip
PRECONDITION = click.option("--precondition", metavar="SPEC", callback=vouched, help="Take P^-1/2 A P^-1/2, which an optimizer meets: optimizer (its state in --checkpoint), a file or folder of its state, a diagonal P as .npz or .safetensors, or file.py:name; options as ?key=value.")  # fmt: skip
COMPILE = click.option("--compile/--no-compile", default=None, help="Compile products by torch.compile.  [default: on a GPU, where the products expected save more time than that takes]")  # fmt: skip
OUT = click.option("--out", metavar="DIR", type=Named(path_type=Path, file_okay=False), help="Write results there.")  # fmt: skip
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
CONFIG = click.option("--config", metavar="FILE", type=Named(path_type=Path), is_eager=True, expose_value=False, callback=read_config, help="Options from a .toml file, or from the .json of a result.")  # fmt: skip


SAVE_EVERY = click.option("--save-every", metavar="MINUTES", type=Positive(), default=defaults.SAVE_EVERY, show_default=True, help="How often what is done is made safe in --out; a run that was cut off goes on from there.")  # fmt: skip


def stacked(*options: Callable) -> Callable:
    """One decorator of many, which help lists in this order."""

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class Matrix(click.Choice):
    """A matrix of the register, which installed packages are asked for when a name is first looked at; or one more."""

    name = "choice"
    choices: Any = property(lambda self: (*MATRICES, *self.more), lambda self, _: None)

    def __init__(self, more: Iterable[str] = ()):
        self.more = more
        super().__init__(())


class Curvature(click.Option):
    """--curvature, whose help lists the register as it is when the help is shown."""

    help: Any = property(lambda self: f"{', '.join(MATRICES)}; {self.others}repeatable.", lambda self, _: None)

    @property
    def others(self) -> str:
        """The matrices that are not over parameters, in words."""
        kernels = ", ".join(self.type.more) if isinstance(self.type, Matrix) else ""
        return f"{kernels}, which is over examples; " if kernels else ""


def loss_part(several: bool) -> Callable:
    """The option --loss-part: one part of a loss in place of the sum, or several beside the sum."""
    which = (
        "Compare this part of the loss with the sum; repeatable."
        if several
        else "Take this part of a loss that returns a mapping.  [default: their sum]"
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
    """A decorator that adds the options of a problem, with --data, and those of `more` before --json.

    Args:
        kernels: matrices over examples, beside those of the register.
        operators: how many --operator may be given in place of the problem: none, 1, or any number.
        checkpoints: --checkpoint may be given several times, and this is its callback.
    """
    data = click.option("--data", cls=OfNetwork, **DATA, **settings)
    repeatable = {"multiple": True, "help": f"{OPERATOR['help']} Repeatable."} if operators > 1 else {}
    operator = [click.option("--operator", **OPERATOR | repeatable)] if operators else []
    before = list(BEFORE_DATA)
    if checkpoints:
        many = {"multiple": True, "callback": checkpoints, "help": f"{WEIGHTS} Repeatable."}
        before[1] = click.option("--checkpoint", **CHECKPOINT, **many)
    named = click.option("--curvature", cls=Curvature, metavar="NAME", multiple=True, default=curvature, show_default=True, type=Matrix(kernels))  # fmt: skip
    return stacked(
        *operator,
        *before,
        data,
        *AFTER_DATA,
        loss_part(parts),
        *AFTER_LOSS,
        named,
        *NUMBERS,
        MAX_PRODUCTS,
        NO_CHECK,
        COMPILE,
        OUT,
        *more,
        JSON,
        CONFIG,
        TRUST,
    )


WRT = click.option("--wrt", metavar="WHAT", default="parameters", show_default=True, help="What is differentiated by: parameters, or inputs, for the matrices of single examples; inputs:NAME where the model takes several.")  # fmt: skip

problem_and_output = with_data(
    PRECONDITION, PRECISION, PRODUCTS, DIFFERENCE_STEP, SAVE_EVERY, WRT, kernels=KERNELS, required=True, operators=1
)
model_and_output = with_data()
