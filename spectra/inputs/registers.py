"""The registers of losses, models and data: names built into spectra, and names that installed packages add.

Objects named by their place (file.py:name, package.module:name, torchvision:NAME, a file, a folder) are not registered.
A package adds a name by an entry point in one of these groups; users write `NAME?key=value`, and the options become
keyword arguments:

    spectra.losses    a function (output, target), a class with such objects, or a `spectra.problem.losses.Loss`
    spectra.models    a function that returns a torch.nn.Module, or a module class
    spectra.data      a function that returns two tensors x and y, or a data set

This module does not import torch.
"""

from __future__ import annotations

from spectra.register import Entry, Register

LOSSES = Register(
    "spectra.losses",
    {
        "cross_entropy": Entry("spectra.problem.cross_entropy:CrossEntropy", "torch.nn.CrossEntropyLoss"),
        "nll": Entry("spectra.problem.log_probabilities:NegativeLogLikelihood", "torch.nn.NLLLoss"),
        "kl_div": Entry("spectra.problem.log_probabilities:KullbackLeibler", "torch.nn.KLDivLoss"),
        "bce_with_logits": Entry("spectra.problem.binary:BinaryCrossEntropy", "torch.nn.BCEWithLogitsLoss"),
        "bce": Entry("spectra.problem.binary:ProbabilityCrossEntropy", "torch.nn.BCELoss"),
        "soft_margin": Entry("spectra.problem.binary:SoftMargin", "torch.nn.SoftMarginLoss"),
        "mse": Entry("spectra.problem.losses:MeanSquaredError", "torch.nn.MSELoss"),
        "l1": Entry("spectra.problem.huber:AbsoluteError", "torch.nn.L1Loss"),
        "huber": Entry("spectra.problem.huber:Huber", "torch.nn.HuberLoss"),
        "smooth_l1": Entry("spectra.problem.huber:SmoothL1", "torch.nn.SmoothL1Loss"),
        "poisson_nll": Entry("spectra.problem.counts:PoissonLoss", "torch.nn.PoissonNLLLoss"),
        "gaussian_nll": Entry("spectra.problem.gaussian:GaussianLoss", "torch.nn.GaussianNLLLoss"),
        "model": Entry("spectra.problem.model_loss:ModelLoss", "the loss that the model returns"),
        "output": Entry("spectra.problem.output_loss:OutputLoss", "the model's output itself, such as an energy"),
    },
)
MODELS = Register("spectra.models", {})
DATA = Register("spectra.data", {"digits": Entry("spectra.inputs.data:digits", "1,797 handwritten digits, 8 x 8")})

BY_OPTION = {"loss": LOSSES, "model": MODELS, "data": DATA, "held_out": DATA}


def is_added(option: str, spec: str) -> bool:
    """Whether the value of an option (`loss`, `model`, ...) is a name that an installed package has added."""
    register = BY_OPTION.get(option)
    return register is not None and register.is_added(spec.partition("?")[0])
