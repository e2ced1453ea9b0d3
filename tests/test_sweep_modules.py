"""Layers and functions of PyTorch between two linear layers: the Hessian against finite differences of gradients."""

import pytest
import torch
import torch.nn.functional as F
from finite_differences import hessian
from torch import nn
from torch.nn.utils import parametrizations as P
from torch.nn.utils import prune, spectral_norm

from spectra.curvature.evaluation import cut_batches
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.problem.losses import MeanSquaredError
from spectra.problem.problem import Problem

D = torch.float64


class Mid(nn.Module):
    """Linear(3 -> k reshaped), the op, flatten, then a fixed random quadratic head to 2 outputs."""

    def __init__(self, op, shape, module=None):
        super().__init__()
        n = 1
        for s in shape:
            n *= s
        self.a = nn.Linear(3, n)
        self.op, self.shape = op, shape
        if module is not None:
            self.m = module()

    def forward(self, x):
        z = self.a(x).reshape(len(x), *self.shape)
        z = self.op(z) if not hasattr(self, "m") else self.op(self.m, z)
        if isinstance(z, tuple):
            z = z[0]
        z = z.reshape(len(x), -1)
        w = torch.linspace(-1, 1, z.shape[1] * 2, dtype=z.dtype).reshape(2, -1)
        return (z @ w.T).tanh() + 0.1 * (z**2) @ w.T


def mod(make, shape):
    return (lambda m, z: m(z)), shape, make


def fun(f, shape):
    return f, shape, None


CASES = {
    **{
        type(m()).__name__: mod(m, (4,))
        for m in (
            nn.ELU,
            nn.SELU,
            nn.CELU,
            nn.GELU,
            nn.Hardshrink,
            nn.Hardsigmoid,
            nn.Hardswish,
            nn.Hardtanh,
            nn.LeakyReLU,
            nn.LogSigmoid,
            nn.Mish,
            nn.PReLU,
            nn.ReLU6,
            nn.RReLU,
            nn.SiLU,
            nn.Sigmoid,
            nn.Softplus,
            nn.Softshrink,
            nn.Softsign,
            nn.Tanhshrink,
        )
    },
    "CELU alpha": mod(lambda: nn.CELU(0.3), (4,)),
    "ELU inplace alpha": mod(lambda: nn.ELU(0.7, inplace=True), (4,)),
    "GELU tanh": mod(lambda: nn.GELU("tanh"), (4,)),
    "Softplus beta thr": mod(lambda: nn.Softplus(5, 2), (4,)),
    "Threshold": mod(lambda: nn.Threshold(0.1, -3.0), (4,)),
    "GLU": mod(nn.GLU, (4,)),
    "Softmin": mod(lambda: nn.Softmin(1), (4,)),
    "PReLU channels": mod(lambda: nn.PReLU(4), (4,)),
    "LogSoftmax": mod(lambda: nn.LogSoftmax(1), (4,)),
    "Hardswish inplace": mod(lambda: nn.Hardswish(inplace=True), (4,)),
    "SiLU inplace": mod(lambda: nn.SiLU(inplace=True), (4,)),
    "Mish inplace": mod(lambda: nn.Mish(inplace=True), (4,)),
    "LayerNorm": mod(lambda: nn.LayerNorm(4), (4,)),
    "LayerNorm no affine": mod(lambda: nn.LayerNorm(4, elementwise_affine=False), (4,)),
    "LayerNorm no bias": mod(lambda: nn.LayerNorm(4, bias=False), (4,)),
    "layer_norm bias only": ((lambda m, z: F.layer_norm(z, (4,), None, m.b)), (4,), lambda: _bias(4)),
    "native_layer_norm bias only": (
        (lambda m, z: torch.native_layer_norm(z, (4,), None, m.b, 1e-5)[0]),
        (4,),
        lambda: _bias(4),
    ),
    "group_norm bias only": ((lambda m, z: F.group_norm(z, 2, None, m.b)), (4, 2), lambda: _bias(4)),
    "group_norm weight only": ((lambda m, z: F.group_norm(z, 2, m.b, None)), (4, 2), lambda: _bias(4)),
    "batch_norm bias only": (
        (lambda m, z: F.batch_norm(z, torch.zeros(4, dtype=z.dtype), torch.ones(4, dtype=z.dtype), None, m.b)),
        (4,),
        lambda: _bias(4),
    ),
    "RMSNorm": mod(lambda: nn.RMSNorm(4), (4,)),
    "RMSNorm no affine": mod(lambda: nn.RMSNorm(4, elementwise_affine=False), (4,)),
    "GroupNorm": mod(lambda: nn.GroupNorm(2, 4), (4, 2)),
    "GroupNorm no affine": mod(lambda: nn.GroupNorm(2, 4, affine=False), (4, 2)),
    "InstanceNorm1d": mod(lambda: nn.InstanceNorm1d(2, affine=True), (2, 3)),
    "InstanceNorm2d": mod(lambda: nn.InstanceNorm2d(2), (2, 2, 2)),
    "InstanceNorm track": mod(lambda: nn.InstanceNorm1d(2, track_running_stats=True, affine=True), (2, 3)),
    "LocalResponseNorm": mod(lambda: nn.LocalResponseNorm(3), (4, 2)),
    "BatchNorm no affine": mod(lambda: nn.BatchNorm1d(4, affine=False), (4,)),
    "Conv1d circular": mod(lambda: nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"), (2, 4)),
    "Conv2d reflect": mod(lambda: nn.Conv2d(1, 2, 2, padding=1, padding_mode="reflect"), (1, 3, 3)),
    "Conv2d replicate": mod(lambda: nn.Conv2d(1, 2, 2, padding=1, padding_mode="replicate"), (1, 3, 3)),
    "Conv2d strided dilated": mod(lambda: nn.Conv2d(1, 2, 2, stride=2, dilation=2), (1, 5, 5)),
    "Conv2d same": mod(lambda: nn.Conv2d(1, 2, 2, padding="same"), (1, 3, 3)),
    "Conv2d depthwise": mod(lambda: nn.Conv2d(2, 4, 2, groups=2), (2, 3, 3)),
    "ConvTranspose1d": mod(lambda: nn.ConvTranspose1d(2, 2, 2, stride=2, output_padding=1), (2, 2)),
    "ConvTranspose2d groups": mod(lambda: nn.ConvTranspose2d(2, 2, 2, groups=2), (2, 2, 2)),
    "Conv3d": mod(lambda: nn.Conv3d(1, 1, 2), (1, 2, 2, 2)),
    "ConvTranspose3d": mod(lambda: nn.ConvTranspose3d(1, 1, 2), (1, 1, 2, 2)),
    "MaxPool2d": mod(lambda: nn.MaxPool2d(2), (1, 4, 4)),
    "MaxPool1d pad dil": mod(lambda: nn.MaxPool1d(3, 1, 1), (2, 4)),
    "MaxPool3d": mod(lambda: nn.MaxPool3d(2), (1, 2, 2, 2)),
    "AvgPool2d ceil": mod(lambda: nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), (1, 3, 3)),
    "AvgPool3d": mod(lambda: nn.AvgPool3d(2), (1, 2, 2, 2)),
    "AdaptiveAvgPool2d": mod(lambda: nn.AdaptiveAvgPool2d(2), (1, 3, 3)),
    "AdaptiveMaxPool2d": mod(lambda: nn.AdaptiveMaxPool2d(2), (1, 3, 3)),
    "AdaptiveAvgPool3d": mod(lambda: nn.AdaptiveAvgPool3d(1), (1, 2, 2, 2)),
    "LPPool1d": mod(lambda: nn.LPPool1d(2, 2), (1, 4)),
    "LPPool2d 3": mod(lambda: nn.LPPool2d(3, 2), (1, 4, 4)),
    "MaxUnpool": fun(lambda z: F.max_unpool1d(*F.max_pool1d(z, 2, return_indices=True), 2), (2, 4)),
    "Upsample bilinear": mod(lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (1, 2, 2)),
    "Upsample bicubic": mod(lambda: nn.Upsample(scale_factor=2, mode="bicubic"), (1, 3, 3)),
    "Upsample nearest": mod(lambda: nn.Upsample(scale_factor=2), (1, 2, 2)),
    "Upsample area": mod(lambda: nn.Upsample(size=2, mode="area"), (1, 3, 3)),
    "Upsample antialias": fun(lambda z: F.interpolate(z, size=2, mode="bilinear", antialias=True), (1, 4, 4)),
    "Upsample linear": mod(lambda: nn.Upsample(scale_factor=2, mode="linear"), (1, 3)),
    "Upsample trilinear": mod(lambda: nn.Upsample(scale_factor=2, mode="trilinear"), (1, 2, 1, 2)),
    "PixelShuffle": mod(lambda: nn.PixelShuffle(2), (4, 1, 2)),
    "PixelUnshuffle": mod(lambda: nn.PixelUnshuffle(2), (1, 2, 2)),
    "ChannelShuffle": mod(lambda: nn.ChannelShuffle(2), (4, 2, 1)),
    "Unfold": mod(lambda: nn.Unfold(2), (1, 3, 3)),
    "Fold": mod(lambda: nn.Fold((3, 3), 2), (4, 4)),
    "ReflectionPad": mod(lambda: nn.ReflectionPad1d(1), (1, 3)),
    "ReplicationPad": mod(lambda: nn.ReplicationPad2d(1), (1, 2, 2)),
    "CircularPad": mod(lambda: nn.CircularPad1d(1), (1, 3)),
    "grid_sample": fun(
        lambda z: F.grid_sample(
            torch.arange(9, dtype=z.dtype).view(1, 1, 3, 3).expand(len(z), 1, 3, 3) / 9,
            z.view(len(z), 2, 1, 2).tanh(),
            align_corners=False,
        ),
        (4,),
    ),
    "affine_grid": fun(lambda z: F.affine_grid(z, (len(z), 1, 2, 2), align_corners=True), (2, 3)),
    "Bilinear": ((lambda m, z: m(z[:, :2], z[:, 2:])), (4,), lambda: nn.Bilinear(2, 2, 3)),
    "CosineSimilarity": fun(lambda z: F.cosine_similarity(z[:, :2], z[:, 2:]), (4,)),
    "PairwiseDistance": fun(lambda z: F.pairwise_distance(z[:, :2], z[:, 2:]), (4,)),
    "normalize": fun(lambda z: F.normalize(z), (4,)),
    "cdist": fun(lambda z: torch.cdist(z, torch.eye(4, dtype=z.dtype)[:2].expand(len(z), 2, 4)), (1, 4)),
    "cdist self": fun(lambda z: torch.cdist(z, z + 1), (2, 2)),
    "cdist p1": fun(lambda z: torch.cdist(z, z + 1, p=1), (2, 2)),
    "cdist p3": fun(lambda z: torch.cdist(z, z + 1, p=3), (2, 2)),
    "cdist inf": fun(lambda z: torch.cdist(z, z + 1, p=float("inf")), (2, 2)),
    "pdist": fun(lambda z: torch.stack([F.pdist(q) for q in z]), (3, 2)),
    "cdist no mm": fun(lambda z: torch.cdist(z, z + 1, compute_mode="donot_use_mm_for_euclid_dist"), (2, 2)),
    "cdist mm": fun(lambda z: torch.cdist(z, z + 1, compute_mode="use_mm_for_euclid_dist"), (2, 2)),
    "vector_norm 1.5": fun(lambda z: torch.linalg.vector_norm(z, 1.5, dim=1), (4,)),
    "vector_norm inf": fun(lambda z: torch.linalg.vector_norm(z, float("inf"), dim=1), (4,)),
    "norm nuc": fun(lambda z: torch.linalg.matrix_norm(z, "nuc"), (2, 2)),
    "norm 2": fun(lambda z: torch.linalg.matrix_norm(z, 2), (2, 2)),
    "fro": fun(lambda z: torch.linalg.matrix_norm(z), (2, 2)),
    "inv": fun(lambda z: torch.linalg.inv(z + 3 * torch.eye(2, dtype=z.dtype)), (2, 2)),
    "solve": fun(
        lambda z: torch.linalg.solve(z + 3 * torch.eye(2, dtype=z.dtype), torch.ones(2, dtype=z.dtype)), (2, 2)
    ),
    "det": fun(lambda z: torch.linalg.det(z), (3, 3)),
    "slogdet": fun(lambda z: torch.linalg.slogdet(z)[1], (3, 3)),
    "cholesky": fun(lambda z: torch.linalg.cholesky(z @ z.mT + torch.eye(2, dtype=z.dtype)), (2, 2)),
    "eigvalsh": fun(lambda z: torch.linalg.eigvalsh(z + z.mT), (3, 3)),
    "svdvals": fun(lambda z: torch.linalg.svdvals(z), (2, 3)),
    "qr": fun(lambda z: torch.linalg.qr(z)[1], (2, 2)),
    "pinv": fun(lambda z: torch.linalg.pinv(z), (3, 2)),
    "matrix_exp": fun(lambda z: torch.linalg.matrix_exp(z), (2, 2)),
    "lstsq": fun(lambda z: torch.linalg.lstsq(z, torch.ones(len(z), 3, 1, dtype=z.dtype)).solution, (3, 2)),
    "eigh vectors": fun(lambda z: torch.linalg.eigh(z + z.mT)[1] ** 2, (2, 2)),
    "det singular": fun(lambda z: torch.linalg.det(z[:, :, None] * z[:, None, :]), (3,)),
    "matrix_power": fun(lambda z: torch.linalg.matrix_power(z, 3), (2, 2)),
    "triangular": fun(
        lambda z: torch.linalg.solve_triangular(
            z + 3 * torch.eye(2, dtype=z.dtype), torch.ones(len(z), 2, 1, dtype=z.dtype), upper=True
        ),
        (2, 2),
    ),
    "fft": fun(lambda z: torch.fft.rfft(z).abs(), (4,)),
    "fft real": fun(lambda z: torch.fft.irfft(torch.fft.rfft(z) * (1 + 2j), n=4), (4,)),
    "complex mul": fun(lambda z: torch.view_as_real(torch.view_as_complex(z.contiguous()) ** 2), (2, 2)),
    "angle": fun(lambda z: torch.view_as_complex(z.contiguous()).angle(), (2, 2)),
    "stft": fun(lambda z: torch.stft(z, 4, 2, window=torch.ones(4, dtype=z.dtype), return_complex=True).abs(), (8,)),
    "polar": fun(lambda z: torch.view_as_real(torch.polar(z[:, 0].abs() + 1, z[:, 1])), (2, 2)),
    "sort": fun(lambda z: z.sort(1)[0], (4,)),
    "topk": fun(lambda z: z.topk(2, 1)[0], (4,)),
    "median": fun(lambda z: z.median(1)[0], (4,)),
    "logcumsumexp": fun(lambda z: z.logcumsumexp(1), (4,)),
    "cummax": fun(lambda z: z.cummax(1)[0], (4,)),
    "logsumexp": fun(lambda z: z.logsumexp(1), (4,)),
    "std": fun(lambda z: z.std(1), (4,)),
    "var_mean": fun(lambda z: torch.stack(torch.var_mean(z, 1), 1), (4,)),
    "renorm": fun(lambda z: torch.renorm(z, 2, 0, 1.0), (4,)),
    "quantile": fun(lambda z: z.quantile(0.3, 1), (4,)),
    "kthvalue": fun(lambda z: z.kthvalue(2, 1)[0], (4,)),
    "trapz": fun(lambda z: torch.trapezoid(z, dim=1), (4,)),
    "cov": fun(lambda z: torch.stack([torch.cov(q) for q in z]), (2, 3)),
    "corrcoef": fun(lambda z: torch.stack([torch.corrcoef(q) for q in z]), (2, 3)),
    "gather": fun(lambda z: z.gather(1, torch.tensor([[0, 0, 3]]).expand(len(z), 3)), (4,)),
    "index_add": fun(lambda z: torch.zeros(len(z), 2, dtype=z.dtype).index_add(1, torch.tensor([0, 1, 0, 1]), z), (4,)),
    "scatter_reduce mean": fun(
        lambda z: torch.ones(len(z), 2, dtype=z.dtype).scatter_reduce(
            1, torch.tensor([[0, 1, 0, 1]]).expand(len(z), 4), z, "mean"
        ),
        (4,),
    ),
    "scatter_reduce amax": fun(
        lambda z: torch.zeros(len(z), 2, dtype=z.dtype).scatter_reduce(
            1, torch.tensor([[0, 1, 0, 1]]).expand(len(z), 4), z, "amax", include_self=False
        ),
        (4,),
    ),
    "index_put acc": fun(
        lambda z: torch.zeros(len(z), 2, dtype=z.dtype).index_put(
            (slice(None).__class__ and torch.arange(len(z))[:, None], torch.tensor([[0, 1, 0, 1]])), z, accumulate=True
        ),
        (4,),
    ),
    "masked_scatter": fun(
        lambda z: torch.zeros_like(z).masked_scatter(torch.tensor([[True, False, True, False]]), z), (4,)
    ),
    "take_along": fun(lambda z: z.take_along_dim(z.argsort(1), 1), (4,)),
    "unfold": fun(lambda z: z.unfold(1, 2, 1), (4,)),
    "as_strided": fun(lambda z: z.contiguous().as_strided((len(z), 3, 2), (4, 1, 1)), (4,)),
    "segment_reduce": fun(
        lambda z: torch.segment_reduce(z.reshape(-1), "sum", lengths=torch.full((2 * len(z),), 2)).reshape(len(z), 2),
        (4,),
    ),
    "lgamma": fun(lambda z: torch.lgamma(z.exp()), (4,)),
    "digamma": fun(lambda z: torch.digamma(z.exp()), (4,)),
    "erfinv": fun(lambda z: torch.erfinv(z.tanh() * 0.9), (4,)),
    "erf": fun(torch.erf, (4,)),
    "erfc": fun(torch.erfc, (4,)),
    "erfcx": fun(torch.special.erfcx, (4,)),
    "i0": fun(torch.special.i0, (4,)),
    "i0e": fun(torch.special.i0e, (4,)),
    "i1": fun(torch.special.i1, (4,)),
    "i1e": fun(torch.special.i1e, (4,)),
    "ndtr": fun(torch.special.ndtr, (4,)),
    "log_ndtr": fun(torch.special.log_ndtr, (4,)),
    "ndtri": fun(lambda z: torch.special.ndtri(z.sigmoid()), (4,)),
    "sinc": fun(torch.sinc, (4,)),
    "entr": fun(lambda z: torch.special.entr(z.sigmoid()), (4,)),
    "xlogy": fun(lambda z: torch.xlogy(z, z.exp()), (4,)),
    "xlog1py": fun(lambda z: torch.special.xlog1py(z, z.exp()), (4,)),
    "zeta": fun(lambda z: torch.special.zeta(z.exp() + 2, torch.tensor(1.5, dtype=z.dtype)), (4,)),
    "igamma": fun(lambda z: torch.igamma(torch.tensor(2.0, dtype=z.dtype), z.exp()), (4,)),
    "logit": fun(lambda z: torch.logit(z.sigmoid() * 0.9, eps=1e-3), (4,)),
    "atan2": fun(lambda z: torch.atan2(z[:, :2], z[:, 2:]), (4,)),
    "hypot": fun(lambda z: torch.hypot(z[:, :2], z[:, 2:]), (4,)),
    "pow tensor": fun(lambda z: z.exp() ** z, (4,)),
    "float_power": fun(lambda z: torch.float_power(z.exp(), 1.7), (4,)),
    "logaddexp": fun(lambda z: torch.logaddexp(z[:, :2], z[:, 2:]), (4,)),
    "logaddexp2": fun(lambda z: torch.logaddexp2(z[:, :2], z[:, 2:]), (4,)),
    "fmod": fun(lambda z: torch.fmod(z, 0.7), (4,)),
    "remainder": fun(lambda z: torch.remainder(z, z[:, :1] + 3), (4,)),
    "frac": fun(torch.frac, (4,)),
    "ldexp": fun(lambda z: torch.ldexp(z, torch.tensor(2)), (4,)),
    "nan_to_num": fun(torch.nan_to_num, (4,)),
    "lerp": fun(lambda z: torch.lerp(z[:, :2], z[:, 2:], z[:, :2]), (4,)),
    "addcdiv": fun(lambda z: torch.addcdiv(z, z, z.exp()), (4,)),
    "mvlgamma": fun(lambda z: torch.mvlgamma(z.exp() + 2, 2), (4,)),
    "copysign": fun(lambda z: torch.copysign(z, z.roll(1, 1)), (4,)),
    "heaviside ste": fun(lambda z: z.sigmoid() + ((z > 0).to(z) - z.sigmoid()).detach(), (4,)),
    "bessel_j0": fun(torch.special.bessel_j0, (4,)),
    "smooth kthw": fun(lambda z: torch.where(z > 0, z**2, -z), (4,)),
    "sgn abs": fun(lambda z: z.sgn() * z.abs().sqrt(), (4,)),
    "rsqrt": fun(lambda z: (z**2 + 1).rsqrt(), (4,)),
    "cosh": fun(torch.cosh, (4,)),
    "clamp tensor": fun(lambda z: torch.clamp(z, z.roll(1, 1) - 1, z.roll(1, 1) + 1), (4,)),
    "cross": fun(lambda z: torch.linalg.cross(z[:, :3], z[:, 3:]), (6,)),
    "einsum": fun(lambda z: torch.einsum("bij,bjk,bki->b", z, z, z), (2, 2)),
    "kron": fun(lambda z: torch.stack([torch.kron(q, q) for q in z]), (2, 2)),
    "block_diag": fun(lambda z: torch.stack([torch.block_diag(q, q) for q in z]), (2, 1)),
    "cartesian": fun(lambda z: torch.stack([torch.combinations(q).prod(1) for q in z]), (4,)),
    "baddbmm": fun(lambda z: torch.baddbmm(z, z, z, beta=0.5, alpha=2), (2, 2)),
    "addmm inplace": fun(lambda z: z.clone().mul_(z).add_(z, alpha=2).clamp_(min=-3), (4,)),
    "slice assign": fun(lambda z: _assign(z), (4,)),
    "tensor split": fun(
        lambda z: torch.cat([a * b for a, b in zip(z.chunk(2, 1), z.chunk(2, 1)[::-1], strict=True)], 1), (4,)
    ),
    "view in place": fun(lambda z: _view(z), (4,)),
    "weight_norm": ((lambda m, z: m(z)), (4,), lambda: P.weight_norm(nn.Linear(4, 3))),
    "spectral_norm new": ((lambda m, z: m(z)), (4,), lambda: P.spectral_norm(nn.Linear(4, 3))),
    "spectral_norm old": ((lambda m, z: m(z)), (4,), lambda: spectral_norm(nn.Linear(4, 3))),
    "orthogonal exp": ((lambda m, z: m(z)), (4,), lambda: P.orthogonal(nn.Linear(4, 4), orthogonal_map="matrix_exp")),
    "orthogonal cayley": ((lambda m, z: m(z)), (4,), lambda: P.orthogonal(nn.Linear(4, 4), orthogonal_map="cayley")),
    "orthogonal householder": (
        (lambda m, z: m(z)),
        (4,),
        lambda: P.orthogonal(nn.Linear(4, 3), orthogonal_map="householder"),
    ),
    "pruned": ((lambda m, z: m(z)), (4,), lambda: prune.l1_unstructured(nn.Linear(4, 3), "weight", 0.4)),
    "LSTM proj bi": (
        (lambda m, z: m(z)[0]),
        (3, 2),
        lambda: nn.LSTM(2, 3, proj_size=2, bidirectional=True, batch_first=True),
    ),
    "GRUCell": ((lambda m, z: m(z)), (2,), lambda: nn.GRUCell(2, 2)),
    "LSTMCell": ((lambda m, z: m(z)[0]), (2,), lambda: nn.LSTMCell(2, 2)),
    "RNN relu": ((lambda m, z: m(z)[0]), (3, 2), lambda: nn.RNN(2, 2, nonlinearity="relu", batch_first=True)),
    "packed LSTM": (
        (
            lambda m, z: nn.utils.rnn.pad_packed_sequence(
                m(
                    nn.utils.rnn.pack_padded_sequence(
                        z, [3, 2, 1, 3, 2][: len(z)] + [1] * max(0, len(z) - 5), batch_first=True, enforce_sorted=False
                    )
                )[0],
                batch_first=True,
                total_length=3,
            )[0]
        ),
        (3, 2),
        lambda: nn.LSTM(2, 2, batch_first=True),
    ),
    "Transformer": ((lambda m, z: m(z, z)), (2, 4), lambda: nn.Transformer(4, 2, 1, 1, 4, batch_first=True)),
    "DecoderLayer": ((lambda m, z: m(z, z)), (2, 4), lambda: nn.TransformerDecoderLayer(4, 2, 4, batch_first=True)),
    "MHA kdim": (
        (lambda m, z: m(z, z, z)[0]),
        (2, 4),
        lambda: nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True),
    ),
    "MHA weights": ((lambda m, z: m(z, z, z)[1]), (2, 4), lambda: nn.MultiheadAttention(4, 2, batch_first=True)),
    "sdpa gqa": fun(lambda z: F.scaled_dot_product_attention(z, z[:, :1], z[:, :1], enable_gqa=True), (2, 2, 2)),
    "sdpa mask": fun(
        lambda z: F.scaled_dot_product_attention(
            z, z, z, attn_mask=torch.tensor([[0.0, -1e9], [0.3, 0.1]], dtype=z.dtype)
        ),
        (1, 2, 2),
    ),
    "flex_attention": fun(lambda z: _flex(z), (1, 2, 2)),
    "AdaptiveLogSoftmax": ((lambda m, z: m.log_prob(z)), (4,), lambda: nn.AdaptiveLogSoftmaxWithLoss(4, 5, [2])),
}


class _bias(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.b = nn.Parameter(torch.randn(n))


def _assign(z):
    out = torch.zeros_like(z)
    out[:, 1:] = z[:, :-1] * z[:, 1:]
    out[:, 0] = z[:, 3] ** 2
    return out


def _view(z):
    z = z * 1
    v = z[:, :2]
    v.mul_(z[:, 2:].clone())
    z.view(-1)[::2].sin_()
    return z


def _flex(z):
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(z, z, z)


REFUSED = {
    # PyTorch fails, where there is a bias and no weight, or has no derivative, or none on the CPU.
    "layer_norm bias only": "`model`: differentiating it failed",
    "native_layer_norm bias only": "`model`: differentiating it failed",
    "batch_norm bias only": "`model`: differentiating it failed",
    "segment_reduce": "`model`: a layer has no second derivative",
    "zeta": "`model`: a layer has no second derivative",
    "bessel_j0": "`params`: the model's output does not depend on any chosen parameter",
    "flex_attention": "`model`: fails on the data",
    # What goes on is not what is differentiated.
    "heaviside ste": "`model`: autograd gives a wrong derivative",
    # These read other examples of their batch: the numbers in their order, and lengths by place in the batch.
    "masked_scatter": "`model`: its output for an example depends on the other examples",
    "packed LSTM": "`model`: its output for an example depends on the other examples",
}
DISTANCES = {name for name in CASES if name.startswith(("cdist", "pdist"))}  # whose second derivatives came late


def lacks_second_derivative(name: str) -> bool:
    """Whether this torch has none of an operation: 2.11 has none of `_cdist_backward`."""
    operation, shape, _ = CASES[name]
    z = torch.randn(2, *shape, dtype=D, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (slope,) = torch.autograd.grad(operation(z).sum(), z, create_graph=True)
    try:
        torch.autograd.grad(slope.square().sum(), z)
    except RuntimeError as error:
        return "not implemented" in str(error)
    return False


JUMPS = {"orthogonal householder"}  # of which a diagonal of 1 and -1 is cut to integers: differences cross a jump
NOT_FINITE = {"LPPool2d 3"}  # powers of 1/3 at 0, where the derivative has a pole
WAYS = ({}, {"products": 10**9})  # by double backward, and traced


@pytest.mark.filterwarnings("ignore")
@pytest.mark.sampled(25)
@pytest.mark.parametrize("name", [name for name in CASES if name not in JUMPS])
def test_the_hessian_of_a_layer_is_that_of_finite_differences(name):
    x, y = (torch.randn(5, k, generator=torch.Generator().manual_seed(k), dtype=D) for k in (3, 2))
    torch.manual_seed(0)
    model = Mid(*CASES[name]).to(D).eval()
    problem = Problem(model, MeanSquaredError(), cut_batches(x, y, torch.arange(5), 5))
    way, eye = WAYS[[*CASES].index(name) % 2], torch.eye(problem.size, dtype=D)
    refused = REFUSED.get(name)
    if name in DISTANCES and lacks_second_derivative(name):
        refused = "`model`: a layer has no second derivative"
    if refused:
        with pytest.raises(SpectraError, match=f"^{refused}"):
            Curvature(problem, "hessian", **way) @ eye
        return
    found = Curvature(problem, "hessian", **way) @ eye
    if name in NOT_FINITE:
        assert not found.isfinite().all()
        return
    expected = hessian(model, lambda: (model(x) - y).square().mean())
    assert (found - expected).abs().max() <= 3e-5 * max(expected.abs().max(), 1e-6)
