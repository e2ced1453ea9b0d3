"""`--loss model` with models of transformers, against their own definitions written out, in float64."""

import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense import Dense, eigenvalues, largest
from PIL import Image
from torch import Tensor, nn

import spectra
from spectra.cli import run
from spectra.curvature.evaluation import mean_loss
from spectra.errors import SpectraError
from spectra.inputs.problem import load_problem
from spectra.problem.batch_loss import BatchLoss

transformers = pytest.importorskip("transformers")

FILE = '''
import torch
import transformers as t

SMALL = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 6}
BERT = SMALL | {"vocab_size": 9, "max_position_embeddings": 5}

def shaken(model):
    """Weights larger than at the start, so that nothing is nearly linear."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    return model

def mlm():
    return shaken(t.BertForMaskedLM(t.BertConfig(**BERT)))

def entities():
    return shaken(t.BertForTokenClassification(t.BertConfig(**BERT, num_labels=3)))

def stars():
    return shaken(t.BertForSequenceClassification(t.BertConfig(**BERT, num_labels=1)))

def tags():
    kind = "multi_label_classification"
    return shaken(t.BertForSequenceClassification(t.BertConfig(**BERT, num_labels=3, problem_type=kind)))

def spans():
    return shaken(t.BertForQuestionAnswering(t.BertConfig(**BERT)))

def t5():
    sizes = {"d_model": 4, "d_kv": 2, "d_ff": 5, "num_layers": 1, "num_heads": 2, "vocab_size": 9}
    return shaken(t.T5ForConditionalGeneration(t.T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0)))

def clip():
    text = SMALL | {"vocab_size": 9, "max_position_embeddings": 5, "eos_token_id": 8, "bos_token_id": 0}
    vision = SMALL | {"image_size": 4, "patch_size": 2}
    config = t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=3, logit_scale_init_value=0.5)
    return shaken(t.CLIPModel(config))

def vit():
    return shaken(t.ViTForImageClassification(t.ViTConfig(**SMALL, image_size=4, patch_size=2, num_labels=3)))

def mixtral():
    config = SMALL | {"num_key_value_heads": 1, "vocab_size": 9, "num_local_experts": 3, "output_router_logits": True}
    return shaken(t.MixtralForCausalLM(t.MixtralConfig(**config, eos_token_id=0, bos_token_id=0)))

def ctc():
    conv = {"conv_dim": (4,), "conv_kernel": (4,), "conv_stride": (2,), "num_feat_extract_layers": 1}
    more = {"vocab_size": 6, "num_conv_pos_embeddings": 2, "num_conv_pos_embedding_groups": 1, "pad_token_id": 0}
    return shaken(t.Wav2Vec2ForCTC(t.Wav2Vec2Config(**SMALL, **conv, **more)))

def draw(*shape, top, seed=1):
    return torch.randint(1, top, shape, generator=torch.Generator().manual_seed(seed))

def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))

def masked():
    x, hidden = draw(6, 5, top=9), draw(6, 5, top=4, seed=2) == 1
    mask = torch.ones(6, 5, dtype=torch.int64)
    mask[0, 3:] = 0
    labels = x.masked_fill(~hidden | (mask == 0), -100)
    return {"input_ids": x.masked_fill(hidden, 3), "attention_mask": mask, "labels": labels}

def labelled():
    labels = draw(6, 5, top=4) - 1
    return {"input_ids": draw(6, 5, top=9, seed=2), "labels": labels.masked_fill(draw(6, 5, top=4, seed=3) == 1, -100)}

def rated():
    return {"input_ids": draw(6, 5, top=9), "labels": normal(6)}

def tagged():
    return {"input_ids": draw(6, 5, top=9), "labels": (normal(6, 3) > 0).float()}

def asked():
    places = {"start_positions": draw(6, top=4), "end_positions": draw(6, top=5, seed=2)}
    return {"input_ids": draw(6, 5, top=9, seed=3)} | places

def translated():
    labels = draw(5, 4, top=9)
    labels[1, 2:] = -100
    return {"input_ids": draw(5, 5, top=9, seed=2), "labels": labels}

def captioned():
    tokens = draw(8, 5, top=8)
    tokens[:, -1] = 8
    return {"input_ids": tokens, "pixel_values": normal(8, 3, 4, 4)}

def asked_for():
    return captioned() | {"return_loss": True}

def images():
    return {"pixel_values": normal(7, 3, 4, 4), "labels": draw(7, top=4) - 1}

def text():
    x = draw(5, 5, top=9)
    return {"input_ids": x, "labels": x}

def waves():
    return {"input_values": normal(4, 24), "labels": draw(4, 3, top=6)}
'''


def over_tokens(logits: Tensor, labels: Tensor) -> Tensor:
    kept = labels != -100
    return -logits.log_softmax(-1)[kept].gather(1, labels[kept][:, None]).mean()


def answers(outputs: Tensor, data: dict) -> Tensor:
    start, end = outputs
    return (F.cross_entropy(start, data["start_positions"]) + F.cross_entropy(end, data["end_positions"])) / 2


def contrast(scores: Tensor, data: dict) -> Tensor:
    return ((scores.logsumexp(0) + scores.logsumexp(1)) / 2 - scores.diagonal()).mean()


def tokens(data: dict) -> dict:
    return {key: value for key, value in data.items() if key in ("input_ids", "attention_mask", "pixel_values")}


# The network and the data of the file, what the network returns, and its loss by the definition.
MODELS = {
    "mlm": ("masked", lambda call, d: call(**tokens(d)).logits, lambda z, d: over_tokens(z, d["labels"])),
    "entities": ("labelled", lambda call, d: call(**tokens(d)).logits, lambda z, d: over_tokens(z, d["labels"])),
    "stars": ("rated", lambda call, d: call(**tokens(d)).logits, lambda z, d: (z[:, 0] - d["labels"]).square().mean()),
    "tags": (
        "tagged",
        lambda call, d: call(**tokens(d)).logits,
        lambda z, d: (F.softplus(z) - z * d["labels"]).mean(),
    ),
    "t5": (
        "translated",
        lambda call, d: (
            call(
                input_ids=d["input_ids"], decoder_input_ids=F.pad(d["labels"].clamp(min=0), (1, -1)), use_cache=False
            ).logits
        ),
        lambda z, d: over_tokens(z, d["labels"]),
    ),
    "vit": ("images", lambda call, d: call(**tokens(d)).logits, lambda z, d: over_tokens(z, d["labels"])),
    "spans": (
        "asked",
        lambda call, d: torch.stack([call(**tokens(d)).start_logits, call(**tokens(d)).end_logits]),
        answers,
    ),
    "clip": ("captioned", lambda call, d: call(**tokens(d)).logits_per_text, contrast),
}
WHOLE = ("spans", "clip")  # of which no loss of ours is the model's own
INEXACT = ("t5",)  # which computes norms in float32


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("hf.py").write_text(FILE)


@pytest.fixture
def user() -> dict:
    names: dict = {}
    exec(FILE, names)
    return names


def built(user: dict, name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return user[name]().double().eval()


def cast(data: dict) -> dict:
    return {key: value.double() if value.is_floating_point() else value for key, value in data.items()}


def dense(user: dict, name: str, cut: slice = slice(None)) -> Dense:
    source, outputs, loss = MODELS[name]
    data = {key: value[cut] for key, value in cast(user[source]()).items()}
    model: nn.Module = built(user, name)
    return Dense(model, lambda call: outputs(call, data), lambda z: loss(z, data))


def line(name: str, *more: str) -> list[str]:
    return ["--model", f"hf.py:{name}", "--data", f"hf.py:{MODELS[name][0]}", "--loss", "model", *more]


@pytest.mark.parametrize("batch_size", ["8", "3"])
@pytest.mark.parametrize(
    ("name", "curvature"),
    [(name, curvature) for name in MODELS for curvature in ("hessian", "ggn") if (name, curvature) != ("spans", "ggn")],
)
@pytest.mark.sampled(5)
def test_the_loss_that_a_model_returns(user, name, curvature, batch_size, capfd):
    """Recognised losses have a GGN and do not depend on the batches; others are means over whole batches."""
    if name in WHOLE and curvature == "ggn":
        assert run(["eig", *line(name), "--curvature", "ggn"]) == 2
        assert "--curvature ggn: " in capfd.readouterr().err
        return
    size = int(batch_size)
    if name in WHOLE and size < 8:
        count = 8 if name == "clip" else 6
        cuts = [slice(i, min(i + size, count)) for i in range(0, count, size)]
        matrix = sum((cut.stop - cut.start) / count * dense(user, name, cut).hessian() for cut in cuts)
    else:
        matrix = getattr(dense(user, name), curvature)()
    more = ["--curvature", curvature, "--batch-size", batch_size, "-k", "5"]
    record = eigenvalues(capfd, *line(name, *more))
    expected = largest(matrix, 5)
    assert record["results"][0]["eigenvalues"] == pytest.approx(expected, rel=1e-4 if name in INEXACT else 1e-6)
    whole = any("takes whole batches" in note for note in record["problem"]["notes"])
    assert whole == (name in WHOLE)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.sampled(2)
def test_in_python(user, name):
    model = built(user, name)
    found = spectra.eig(model, "model", [cast(user[MODELS[name][0]]())], k=2, tolerance=1e-8)
    expected = largest(dense(user, name).hessian(), 2)
    assert list(found.values) == pytest.approx(expected, rel=1e-4 if name in INEXACT else 1e-6)


def test_an_argument_that_is_no_tensor(user, capfd):
    line = "--model hf.py:clip --data hf.py:asked_for --loss model -k 3"
    expected = largest(dense(user, "clip").hessian(), 3)
    assert eigenvalues(capfd, *line.split())["results"][0]["eigenvalues"] == pytest.approx(expected, rel=1e-6)


def test_experts_with_a_loss_of_their_balance(user, capfd):
    """The gradient, by differences of the loss that transformers computes without us."""
    problem = load_problem(model="hf.py:mixtral", data="hf.py:text", loss="model", dtype="float64")
    assert any("takes whole batches" in note for note in problem.record.notes)
    data, model = user["text"](), built(user, "mixtral")
    model.set_experts_implementation("eager")
    returned = model(**data)
    assert problem.record.loss_value == pytest.approx(returned.loss.item(), rel=1e-5)
    plain = F.cross_entropy(returned.logits[:, :-1].flatten(0, 1), data["labels"][:, 1:].flatten())
    assert abs(returned.loss - plain) > 1e-3  # the balance is in it
    assert returned.loss.item() == pytest.approx((plain + 0.001 * returned.aux_loss).item(), rel=1e-5)
    capfd.readouterr()
    reference = Dense(model, lambda call: call(**data, use_cache=False).loss, lambda loss: loss)
    record = eigenvalues(capfd, *shlex.split("--model hf.py:mixtral --data hf.py:text --loss model -k 3"))
    assert record["results"][0]["eigenvalues"] == pytest.approx(largest(reference.hessian(), 3), rel=1e-3)


def test_ctc_inside_a_model(user, capfd):
    """It has gradients of batches, and no second derivative."""
    name = "--model hf.py:ctc --data hf.py:waves --loss model --batch-size 2 -k 2"
    assert run(shlex.split(f"eig {name}")) == 2
    assert "has no second derivative" in capfd.readouterr().err
    model, data, rows = built(user, "ctc"), cast(user["waves"]()), []
    for cut in (slice(2), slice(2, None)):
        model.zero_grad()
        model(**{key: value[cut] for key, value in data.items()}).loss.backward()
        rows.append(
            torch.cat([p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.parameters()])
        )
    g = torch.stack(rows)
    record = eigenvalues(capfd, *shlex.split(f"{name} --curvature fisher-batch"))
    assert record["results"][0]["eigenvalues"] == pytest.approx(largest(g @ g.T / 2, 2), rel=1e-6)


ENTROPY = """
def entropy(model, batch):
    import torch.nn.functional as F
    x, y = batch
    return F.cross_entropy(model(x).logits, y, reduction="none")
"""


def folder_of_images() -> None:
    """Images of two classes in a folder, and as arrays in a file."""
    drawn = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    for number, image in enumerate(drawn):
        place = Path("pictures", "ab"[number // 3], f"{number}.png")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    x, y = drawn.transpose(0, 3, 1, 2) / np.float32(255), np.arange(6) // 3
    np.savez("named.npz", pixel_values=x, labels=y)
    Path("own.py").write_text(ENTROPY)


@pytest.mark.parametrize("loss", ["model", "own.py:entropy"])
def test_images_of_a_folder_are_transformed_for_losses_of_whole_items(loss):
    folder_of_images()
    expected = load_problem(model="hf.py:vit", data="named.npz", loss="model").problem
    problem = load_problem(model="hf.py:vit", data="pictures", loss=loss).problem
    assert mean_loss(problem) == pytest.approx(mean_loss(expected), rel=1e-6)
    assert type(problem.loss) is (type(expected.loss) if loss == "model" else BatchLoss)


def test_names_that_a_model_takes_and_may_ignore_are_noted(user):
    data = user["masked"]()
    mask = data.pop("attention_mask")
    model, notes = built(user, "mlm"), []
    for name in ("attention_mask", "mask"):
        notes.append(load_problem(model=model, data=cast(data) | {name: mask}, loss="model").record.notes)
    assert notes[1][0].startswith("the model's own loss is the cross entropy")
    assert (
        "the model's forward has no argument mask, and may ignore it: it has input_ids, attention_mask" in notes[1][1]
    )
    assert not any("ignore it" in note for note in notes[0])


def test_a_token_beyond_the_embedding():
    tokens = np.full((4, 5), 9)
    np.savez("beyond.npz", input_ids=tokens, labels=tokens)
    with pytest.raises(SpectraError, match="an index exceeds an embedding: check the token ids"):
        load_problem(model="hf.py:mlm", data="beyond.npz", loss="model")


def test_a_decoder_without_inputs_is_told_of_the_models_own_loss():
    tokens = np.random.default_rng(0).integers(1, 9, (4, 5))
    np.savez("translated.npz", input_ids=tokens, labels=tokens)
    with pytest.raises(SpectraError, match="inputs of its decoder from labels, which only `loss` model gives"):
        load_problem(model="hf.py:t5", data="translated.npz", loss="cross_entropy")


def test_a_pair_of_arrays_is_input_and_labels():
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 9, (6, 5)), draw.integers(0, 3, (6, 5))
    np.savez("named.npz", input_ids=x, labels=y)
    np.savez("pair.npz", x=x, y=y)
    named, pair = (
        load_problem(model="hf.py:entities", data=f"{d}.npz", loss="model").problem for d in ("named", "pair")
    )
    assert mean_loss(pair) == mean_loss(named)
