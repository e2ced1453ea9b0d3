"""The registers of losses, models and data: our names, and those that installed packages add.

Objects named by their place (file.py:name, package.module:name, torchvision:NAME, a file, a folder) are in none of
them. A package adds a name by an entry point; it is used as `NAME?key=value`, the options being keyword arguments:

    spectra.losses    a function (output, target), or a class of such or of `spectra.problem.losses.Loss`
    spectra.models    a function that returns a torch.nn.Module, or a class of such
    spectra.data      a function that returns two tensors x and y, or a data set

No torch is loaded here.
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
        "output": Entry("spectra.problem.output_loss:OutputLoss", "the model's output itself, as of an energy"),
    },
)
MODELS = Register("spectra.models", {})
DATA = Register("spectra.data", {"digits": Entry("spectra.inputs.data:digits", "1,797 handwritten digits, 8 x 8")})

OF_OPTIONS = {"loss": LOSSES, "model": MODELS, "data": DATA, "held_out": DATA}


def is_added(option: str, spec: str) -> bool:
    """Whether what is given to an option (`loss`, `model`, ...) names code that an installed package has added."""
    register = OF_OPTIONS.get(option)
    return register is not None and register.is_added(spec.partition("?")[0])
