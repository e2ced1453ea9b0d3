"""Which parameter each state of an optimizer is of: told for sure, or refused."""

import copy

import pytest
import torch
from helpers import seeded
from torch import nn

from spectra.errors import SpectraError
from spectra.optimizer.files import read_optimizer
from spectra.optimizer.matching import by_order
from spectra.optimizer.preconditioner import preconditioner


def network(*, tied: bool = False, frozen: tuple[str, ...] = (), seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 5), nn.Linear(5, 5, bias=False))
    if tied:
        model[3].weight = model[2].weight
    for name, p in model.named_parameters():
        p.requires_grad_(name not in frozen)
    return model.double()


def trained(model: nn.Module, given, kind=torch.optim.AdamW, steps: int = 3, **options) -> torch.optim.Optimizer:
    """An optimizer after a few steps on random gradients."""
    optimizer, generator = kind(given, **{"lr": 0.1, **options}), seeded(1)
    for _ in range(steps):
        step(model, optimizer, generator)
    return optimizer


def step(model, optimizer, generator) -> None:
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype) if p.requires_grad else None
    optimizer.step()


def named(model, wanted):
    return [p for name, p in model.named_parameters() if wanted(name, p)]


def by_decay(model):
    """Two groups as Hugging Face's Trainer makes them: matrices decay, vectors do not."""
    return [
        {"params": named(model, lambda _, p: p.ndim > 1), "weight_decay": 0.1},
        {"params": named(model, lambda _, p: p.ndim == 1), "weight_decay": 0.0, "lr": 0.3},
    ]


def backwards(model):
    """The last layer first, with a rate of its own; each layer has shapes that others lack."""
    return [
        {"params": [model[0].bias, model[1].weight, model[1].bias, model[2].bias], "lr": 0.2},
        {"params": [model[0].weight], "lr": 0.4},
        {"params": [model[2].weight, model[3].weight], "lr": 0.8},
    ]


CERTAIN = {
    "all": (network, lambda m: m.parameters()),
    "tied": (lambda: network(tied=True), lambda m: m.parameters()),
    "frozen, given": (lambda: network(frozen=("0.weight", "0.bias")), lambda m: m.parameters()),
    "frozen, left out": (
        lambda: network(frozen=("0.weight", "2.weight")),
        lambda m: named(m, lambda _, p: p.requires_grad),
    ),
    "groups by their shapes": (network, by_decay),
    "groups in another order": (network, backwards),
    "by name": (network, lambda m: m.named_parameters()),
    "groups by name": (
        network,
        lambda m: [{"params": [*m[3].named_parameters(prefix="3")]}, {"params": [*m[2].named_parameters(prefix="2")]}],
    ),
}


@pytest.mark.parametrize("case", CERTAIN)
def test_a_saved_state_is_read_as_the_optimizer_itself(case):
    """Against the optimizer in memory, which holds the parameters themselves."""
    build, given = CERTAIN[case]
    model = build()
    optimizer = trained(model, given(model))
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    chosen = {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) in held}
    direct = preconditioner(optimizer, model, chosen)
    expected = [optimizer.state[p]["exp_avg_sq"].flatten() for p in chosen.values()]
    rates = [
        p.new_full((p.numel(),), g["lr"])
        for p in chosen.values()
        for g in optimizer.param_groups
        if p in set(g["params"])
    ]
    root = 1 / ((1 - 0.9**3) * ((torch.cat(expected) / (1 - 0.999**3)).sqrt() + 1e-8))
    unit = 1.0 if direct.rate else torch.cat(rates)
    torch.testing.assert_close(direct.root**2, root * unit)
    saved = preconditioner(copy.deepcopy(optimizer.state_dict()), model, chosen)
    assert torch.equal(saved.root, direct.root)
    assert torch.equal(saved.decay, direct.decay)
    assert (saved.rate, saved.threshold, saved.optimizer) == (direct.rate, direct.threshold, "AdamW")


def renamed(optimizer, model, prefix="", alias=None):
    """The state by names, as FSDP and torch.distributed.checkpoint save it."""
    names = {id(p): name for name, p in model.named_parameters()} | (alias or {})
    numbers = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    saved = optimizer.state_dict()
    return {
        "state": {prefix + numbers[i]: held for i, held in saved["state"].items()},
        "param_groups": [g | {"params": [prefix + numbers[i] for i in g["params"]]} for g in saved["param_groups"]],
    }


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "net."])
def test_states_by_name(prefix):
    model = network()
    optimizer = trained(model, by_decay(model))
    saved = preconditioner(renamed(optimizer, model, prefix), model)
    assert torch.equal(saved.root, preconditioner(optimizer, model).root)
    flat = {}
    for group in renamed(optimizer, model, prefix)["param_groups"]:
        for own in group["params"]:
            flat |= {f"param_groups.{own}.{key}": value for key, value in group.items() if key != "params"}
    for own, held in renamed(optimizer, model, prefix)["state"].items():
        flat |= {f"state.{own}.{key}": value for key, value in held.items()}
    assert torch.equal(preconditioner(flat, model).root, saved.root)


def test_a_tied_parameter_by_its_other_name():
    model = network(tied=True)
    optimizer = trained(model, model.parameters())
    saved = renamed(optimizer, model, alias={id(model[2].weight): "3.weight"})
    assert torch.equal(preconditioner(saved, model).root, preconditioner(optimizer, model).root)


def test_a_state_of_torch_distributed_checkpoint():
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    model = network()
    optimizer = trained(model, by_decay(model))
    for flat in (False, True):
        options = StateDictOptions(flatten_optimizer_state_dict=flat)
        saved = get_optimizer_state_dict(model, optimizer, options=options)
        assert torch.equal(preconditioner(saved, model).root, preconditioner(optimizer, model).root)


def test_parameters_added_later():
    """Their states have had fewer steps, and come last."""
    model = network(frozen=("0.weight", "0.bias"))
    optimizer = trained(model, named(model, lambda _, p: p.requires_grad))
    model[0].weight.requires_grad_(True)
    optimizer.add_param_group({"params": [model[0].weight]})
    with pytest.raises(SpectraError, match=r"0\.weight has no state \(exp_avg_sq is missing\)"):
        preconditioner(optimizer, model)
    step(model, optimizer, seeded(2))
    found = preconditioner(optimizer.state_dict(), model)
    assert torch.equal(found.root, preconditioner(optimizer, model).root)
    gradient = optimizer.state[model[0].weight]["exp_avg"] / 0.1
    torch.testing.assert_close(found.root[:15] ** 2, 1 / (0.1 * (gradient.flatten().abs() + 1e-8)))
    with pytest.raises(SpectraError, match=r"0\.bias is not among its parameters"):
        preconditioner(optimizer, model, dict(model.named_parameters()))


UNSURE = {
    "two of one shape in two groups": (
        lambda m: [
            {"params": [m[3].weight]},
            {"params": [m[2].weight]},
            {"params": named(m, lambda _, p: p.shape != (5, 5))},
        ],
        r"number 0 may be \d\.weight or \d\.weight",
    ),
    "weights and biases by a rule that is not recorded": (
        lambda m: [
            {"params": named(m, lambda n, _: "weight" in n)},
            {"params": named(m, lambda n, _: "bias" in n)},
        ],
        r"number \d may be .* or .*; save with names",
    ),
    "some left out": (lambda m: named(m, lambda n, _: n not in ("1.bias", "2.bias")), "number . may be"),
    "another order": (
        lambda m: list(m.parameters())[::-1],
        "parameter number 0 has shape .5, 5., but 0.weight of the model has shape .5, 3.",
    ),
    "another order of all in groups": (
        lambda m: [{"params": [m[0].bias, m[0].weight]}, {"params": [p for i in (1, 2, 3) for p in m[i].parameters()]}],
        "do not fit the model's parameters in any order",
    ),
}


@pytest.mark.parametrize("case", UNSURE)
def test_what_is_not_certain_is_refused(case):
    given, message = UNSURE[case]
    model = network()
    optimizer = trained(model, given(model))
    with pytest.raises(SpectraError, match=message):
        preconditioner(optimizer.state_dict(), model)


def test_orders_against_all_that_there_are():
    """The assignments that are found are those that brute force finds, in random models and groups."""
    from itertools import product

    generator, seen = seeded(3), {"none": 0, "one": 0, "several": 0}
    for _ in range(300):
        count, groups = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((1, 6), (1, 4)))
        sizes = torch.randint(1, 4, (count,), generator=generator).tolist()
        model = nn.ParameterDict({f"p{i}": nn.Parameter(torch.zeros(size)) for i, size in enumerate(sizes)})
        chosen = torch.randint(0, groups, (count,), generator=generator).tolist()
        shapes: list[list[torch.Size | None]] = [[] for _ in range(groups)]
        for size, g in zip(sizes, chosen, strict=True):
            shapes[g].append(torch.Size([size]))
        if torch.rand((), generator=generator) < 0.3:
            for group in shapes:
                group.reverse()
        ways = []
        for other in product(range(groups), repeat=count):
            rebuilt = [
                [torch.Size([s]) for s, g in zip(sizes, other, strict=True) if g == own] for own in range(groups)
            ]
            if rebuilt == shapes:
                ways.append([[f"p{i}" for i, g in enumerate(other) if g == own] for own in range(groups)])
        if len(ways) == 1:
            assert by_order(shapes, model) == ways[0]
        else:
            with pytest.raises(SpectraError, match="may be" if ways else "has shape|in any order"):
                by_order(shapes, model)
        seen["none" if not ways else "one" if len(ways) == 1 else "several"] += 1
    assert min(seen.values()) >= 10


def saved(**options):
    model = network()
    return trained(model, model.parameters(), **options).state_dict(), model


def changed(change, **options):
    state, model = saved(**options)
    state = copy.deepcopy(state)
    change(state)
    return state, model


def without_mark(state):
    """As torch before 2.7 saved it."""
    for group in state["param_groups"]:
        del group["decoupled_weight_decay"]


def of_8_bits(state):
    for held in state["state"].values():
        held["state1"] = held.pop("exp_avg").to(torch.uint8)


def factored(state):
    for held in state["state"].values():
        held["exp_avg_sq_row"] = held.pop("exp_avg_sq")


def of_lion(state):
    for group in state["param_groups"]:
        del group["eps"]
    for held in state["state"].values():
        del held["exp_avg_sq"], held["step"]


def label(**options):
    return lambda state: [group.update(options) for group in state["param_groups"]]


def number(value):
    return lambda state: state["param_groups"][0].update(lr=value)


REFUSED = {
    "8 bits": (
        of_8_bits,
        {},
        "bitsandbytes, whose state may be of 8 bits; supported are torch's Adam, ",
    ),
    "factored": (factored, {}, "an Adafactor, but in a format of neither torch nor transformers"),
    "Muon": (label(ns_steps=5), {}, "Muon, whose preconditioner is not diagonal"),
    "Shampoo": (label(max_preconditioner_dim=8192), {}, "Shampoo, whose preconditioner is not diagonal"),
    "Lion": (of_lion, {}, "Lion, whose step is a sign; supported are torch's Adam, "),
    "an option that is not known": (label(caution=True), {}, "not those of a supported optimizer"),
    "a state that is not known": (
        lambda s: s["state"][0].update(ema=torch.ones(5, 3)),
        {},
        "a supported optimizer",
    ),
    "no state": (lambda s: s["state"].pop(2), {}, r"1\.weight has no state \(exp_avg_sq is missing\)"),
    "no step": (lambda s: s["state"][2].update(step=torch.tensor(0.0)), {}, r"1\.weight has not taken a step yet"),
    "another shape": (lambda s: s["state"].update({0: s["state"][1]}), {}, r"number 0 has shape \(5,\), but 0\.weight"),
    "Adam or AdamW": (without_mark, {"weight_decay": 0.1}, "give `name`"),
    "nothing squared": (
        lambda s: s["state"][1]["exp_avg_sq"].zero_(),
        {"eps": 0},
        r"zero or not finite at entries of 0\.bias",
    ),
    "diverged": (lambda s: s["state"][1]["exp_avg_sq"].fill_(float("nan")), {}, "the run diverged"),
    "a rate that is no number": (number("x"), {}, "lr is saved as str"),
    "damaged": (lambda s: s.update(param_groups=[{}]), {}, "damaged"),
    "a key of no kind": (lambda s: s["param_groups"][0].update(params=[[0]]), {}, "damaged"),
    "betas that are no pair": (label(betas=0.9), {}, "not a pair of numbers"),
    "betas that do not fade": (label(betas=(0.9, 1.0)), {}, "0.9 and 1, not in"),
    "no optimizer": (lambda s: s.clear(), {}, "holds no 'state' and 'param_groups'|holds no `state`"),
    "in two groups": (lambda s: s["param_groups"].append(s["param_groups"][0]), {}, "in two of its groups"),
    "one more": (lambda s: s["param_groups"][0]["params"].append(99), {}, "it has 8 parameters, but the model has 7"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    change, options, message = REFUSED[case]
    state, model = changed(change, **options)
    with pytest.raises(SpectraError, match=f"^`optimizer`: .*({message})"):
        preconditioner(state, model)


def test_the_name_tells_adam_from_adamw():
    state, model = changed(without_mark, weight_decay=0.1)
    coupled, decoupled = (preconditioner(state, model, name=name) for name in ("Adam", "AdamW"))
    torch.testing.assert_close(coupled.decay, 0.1 * coupled.root**2)
    torch.testing.assert_close(decoupled.decay, torch.full_like(coupled.root, 0.1))
    assert (coupled.optimizer, decoupled.optimizer) == ("Adam", "AdamW")
    with pytest.raises(SpectraError, match="not those of torch's RMSprop"):
        preconditioner(state, model, name="RMSprop")
    with pytest.raises(SpectraError, match="Lion is not supported"):
        preconditioner(state, model, name="Lion")
    without_decay, model = changed(without_mark, weight_decay=0.0)
    assert preconditioner(without_decay, model).decay is None


class Cautious(torch.optim.Adam):
    """An optimizer of somebody, which may step as it likes."""


def test_optimizers_in_memory():
    model = network()
    optimizer = trained(model, model.parameters(), Cautious)
    with pytest.raises(SpectraError, match=r"Cautious' is not supported|Cautious is not supported"):
        preconditioner(optimizer, model)
    assert preconditioner(optimizer, model, name="Adam").optimizer == "Adam"
    with pytest.raises(SpectraError, match=r"expected a torch\.optim optimizer or its state_dict\(\), got"):
        preconditioner(7, model)  # pyright: ignore[reportArgumentType]

    class Wrapped(torch.optim.Optimizer):
        def __init__(self):
            self.optimizer = optimizer

    assert preconditioner(Wrapped(), model, name="Adam").optimizer == "Adam"


OF_OTHERS = {
    "torch.optim:Muon": "Muon, whose preconditioner is not diagonal",
    "torch.optim:Adamax": "Adamax",
    "torch.optim:Rprop": "Rprop",
    "torch.optim:ASGD": "ASGD",
    "timm.optim:Lion": "Lion, whose step is a sign",
    "timm.optim:Muon": "Muon, whose preconditioner is not diagonal",
    "timm.optim:Adan": "Adan",
    "timm.optim:AdaBelief": "AdaBelief",
    "timm.optim:Lamb": "LAMB, which scales the step of each layer by its norm",
    "timm.optim:Lars": "LARS, which scales the step of each layer by its norm",
    "timm.optim:Adafactor": None,
    "timm.optim:AdafactorBigVision": None,
    "timm.optim:AdamP": None,
    "timm.optim:MADGRAD": None,
    "timm.optim:LaProp": None,
}


@pytest.mark.filterwarnings("ignore")  # of timm's own
@pytest.mark.parametrize("place", OF_OTHERS)
def test_real_optimizers_that_are_not_read_are_named(place):
    """In memory and saved; those that are not known by name are not taken for one that is."""
    module, name = place.split(":")
    kind = getattr(pytest.importorskip(module), name)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    optimizer = trained(model, model.parameters(), kind, lr=1e-3)
    for given in (optimizer, optimizer.state_dict()):
        reason = (
            f"its state is that of {OF_OTHERS[place]}"
            if OF_OTHERS[place]
            else "is not supported|are not|an Adafactor, but"
        )
        with pytest.raises(SpectraError, match=reason):
            preconditioner(given, model)


def test_adafactor_scales_by_the_parameters_of_the_model():
    """Which a model without values does not tell."""
    model = network()
    state = trained(model, model.parameters(), torch.optim.Adafactor).state_dict()
    before = preconditioner(state, model).root
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)
    found = preconditioner(state, model).root
    after = torch.cat([p.new_full((p.numel(),), p.square().mean().sqrt().item()) for p in model.parameters()])
    torch.testing.assert_close(found**2 / before**2, after.clamp(min=1e-3) / (after / 4).clamp(min=1e-3))
    with pytest.raises(SpectraError, match=r"scale with the values of 0\.weight, which are not loaded"):
        preconditioner(state, model.to("meta"))


def test_groups_that_differ():
    """One ascends; momenta differ; a rate is 0, which holds its parameters."""
    model = network()
    groups = by_decay(model)
    groups[1]["maximize"] = True
    with pytest.raises(SpectraError, match="maximizes for some parameters"):
        preconditioner(trained(model, groups), model)
    groups = by_decay(model)
    groups[1]["betas"] = (0.5, 0.9)
    limit = preconditioner(trained(model, groups), model).threshold
    assert limit.value is None
    assert "momentum differs" in limit.reason
    groups = by_decay(model)
    groups[1]["lr"] = 0.0
    found = preconditioner(trained(model, groups), model)
    still = torch.cat([torch.full((p.numel(),), p.ndim == 1) for p in model.parameters()])
    assert not found.root[still].any()
    assert (found.root[~still] > 0).all()


def test_steps_as_numbers_and_plain_sgd():
    """Old torch saved steps as numbers; gradient descent has no state at all."""
    state, model = changed(lambda s: [held.update(step=3) for held in s["state"].values()])
    assert torch.equal(preconditioner(state, model).root, preconditioner(saved()[0], model).root)
    plain = preconditioner(trained(model, model.parameters(), torch.optim.SGD).state_dict(), model)
    assert torch.equal(plain.root, torch.ones_like(plain.root))
    assert plain.threshold.value == pytest.approx(20)


def test_files(tmp_path):
    model = network()
    first, second = (trained(model, model.parameters(), steps=steps).state_dict() for steps in (2, 3))
    whole, weights = first | {}, model.state_dict()
    (tmp_path / "checkpoint-500").mkdir()
    torch.save(whole, tmp_path / "checkpoint-500" / "optimizer.pt")
    torch.save({"model": weights, "optimizer": first, "lr_scheduler": {"last_epoch": 3}}, tmp_path / "loop.pt")
    lightning = {"state_dict": weights, "optimizer_states": [first], "hyper_parameters": {"lr": 0.1}}
    torch.save(lightning, tmp_path / "lightning.ckpt")
    torch.save(lightning | {"optimizer_states": [first, second]}, tmp_path / "gan.ckpt")
    torch.save(weights, tmp_path / "weights.pt")
    expected = preconditioner(first, model).root
    for name in ("checkpoint-500", "checkpoint-500/optimizer.pt", "loop.pt", "lightning.ckpt"):
        assert torch.equal(preconditioner(read_optimizer(tmp_path / name), model).root, expected)
    again = read_optimizer(tmp_path / "gan.ckpt", "optimizer_states.1")
    assert torch.equal(preconditioner(again, model).root, preconditioner(second, model).root)
    for name, key in (("gan.ckpt", None), ("loop.pt", "optim")):
        with pytest.raises(SpectraError, match=r"holds the states optim.*; choose one"):
            read_optimizer(tmp_path / name, key)
    with pytest.raises(SpectraError, match=r"holds no optimizer state, only 0\.weight"):
        read_optimizer(tmp_path / "weights.pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "plain").mkdir()
    torch.save(weights, tmp_path / "plain" / "pytorch_model.bin")
    for folder in ("empty", "plain"):
        with pytest.raises(SpectraError, match=rf"{folder} is a folder without optimizer\.pt or optimizer\.bin; name"):
            read_optimizer(tmp_path / folder)
    with pytest.raises(SpectraError, match="no such file"):
        read_optimizer(tmp_path / "absent.pt")


def test_a_name_that_the_state_denies():
    """A decay that Adam's state says is coupled is not AdamW's; without a decay they are one optimizer."""
    model = network()
    state = trained(model, model.parameters(), torch.optim.Adam, weight_decay=0.1).state_dict()
    with pytest.raises(SpectraError, match="weight decay is coupled, as in Adam, and not as in AdamW"):
        preconditioner(state, model, name="AdamW")
    state["param_groups"][0]["weight_decay"] = 0
    assert torch.equal(preconditioner(state, model, name="AdamW").root, preconditioner(state, model).root)
