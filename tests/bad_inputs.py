"""The table of the kinds of wrong input: what draws each, how it may end, and its share of all that are drawn."""

import bad_user
from bad_files import (
    ARRAYS,
    BIAS,
    CHECKPOINTS,
    FIELDS,
    GOOD,
    POINTS,
    RESULTS,
    TOML,
    VECTORS,
    WEIGHT,
    WEIGHTS,
    changed_record,
    evil,
    flipped,
    leaves,
    misspelled,
    no_number,
    noise,
    nonsense,
    npz,
    saved,
    tensors,
    text,
    to_json,
    torch_file,
    trees,
    truncated,
    truncated_record,
    values,
    with_null,
    words,
)
from bad_lines import (
    ALL,
    OF_THE_MODEL,
    OF_THE_RUN,
    PROBLEM,
    Kind,
    Wrong,
    above_zero,
    broken,
    choice,
    each,
    failing,
    holding,
    integer,
    kind,
    mistyped,
    never_empty,
    numeric,
    one,
    required,
    spec,
    unknown_option,
    valued,
    ways,
)
from hypothesis import strategies as st

from spectra.curvature.matrices import MATRICES, definition

ANY = (0, 1, 2)  # what bytes and values changed at random make may be valid
MAYBE = {"statuses": ANY, "without": ["--params", *OF_THE_RUN]}  # of which some may then be wrong
ALONE = [command for command in PROBLEM if command != "compare"]  # which wants two matrices
SQUARED = st.sampled_from([name for name in MATRICES if definition(name).loss_power == 2])
DISTRIBUTION = st.sampled_from([name for name in MATRICES if definition(name).needs_distribution])
NEEDS_TWICE = st.sampled_from(["hessian", "ggn", "fisher", "fisher-mc"])
DEFLATING = ["trace", "density"]
WRITING = [*PROBLEM, "demo"]
IN_THE_WAY = {"taken/eig.json/x": b"", "taken/eig.npz/x": b""}
NO_DATA = ["nothing", "number", "text", "list", "dict", "class", "set", "array"]
NO_CODE = [b"import sys\nsys.exit(3)", b"1/0", b"def", b"\0", b"\xff\xfe", b"import nothing_of_the_kind"]
SMOOTHING = ["label_smoothing=2", "label_smoothing=nan", "ignore_index=a", "ignore_index=1e99", "class_dim=2", "x=1"]
CLASS_WEIGHTS = ["weight=1,x", "weight=1,2", "weight=-1,1,1", "weight=0,0,0", "weight=1,1,inf"]


THE_LINE = {
    "command unknown": Kind(nonsense.map(lambda name: Wrong([name], [name]))),
    "command misspelled": Kind(
        st.sampled_from(ALL).flatmap(lambda c: misspelled(c, ALL)).map(lambda c: Wrong([c], [c]))
    ),
    "option of the group unknown": Kind(nonsense.map(lambda name: Wrong([f"--{name}", "eig"], [f"--{name}"]))),
    "option unknown": Kind(nonsense.flatmap(lambda name: broken({f"--{name}": None}, ALL))),
    "option strange": Kind(words.flatmap(lambda name: broken({f"--x{name}": None}, ALL, []))),
    "option misspelled": Kind(unknown_option(), share=2),
    "option without its value": Kind(
        one(valued).flatmap(lambda pair: broken({pair[1]: ...}, [pair[0]], last=[pair[1]]))
    ),
    "option missing": Kind(one(required).flatmap(lambda pair: broken({pair[1]: ...}, [pair[0]], without=["--config"]))),
    "argument surplus": Kind(nonsense.flatmap(lambda name: broken({}, WRITING, [name], last=[name]))),
    "argument missing": kind({"RESULT": ...}, ["plot"]),
    "value empty": Kind(mistyped(never_empty, "", PROBLEM), share=2),
    "number of no digits": Kind(mistyped(numeric, words.filter(no_number)), share=2),
    "number below the range": Kind(mistyped(numeric, st.integers(max_value=-1))),
    "number that is 0": Kind(mistyped(above_zero, "0")),
    "number not finite": Kind(mistyped(numeric, st.sampled_from(["nan", "inf", "-inf", "1e999", "NaN"])), share=2),
    "number with a fraction": Kind(mistyped(integer, st.floats(1, 1e6).map("{:.3f}".format))),
    "number of a seed too large": kind({"--seed": st.integers(min_value=2**63)}),
    "choice": Kind(mistyped(choice, words | nonsense), share=2),
    "choice in small letters": kind({"--which": st.sampled_from(["lm", "la", "sa", "be"])}, ["eig"]),
}

TOGETHER = {
    "-k beyond n": kind({"-k": st.integers(16, 10**30)}, ["eig"], without=["--max-products"]),
    "--samples beyond the data": kind({"--samples": st.integers(12, 10**30)}),
    "--method dense beyond the budget": kind(
        {"--method": "dense", "--max-products": st.integers(1, 14)},
        ["eig", "trace"],
        "--max-products",
        without=["--params", "-k"],
    ),
    "--method power of an end": kind(
        {"--method": "power", "--which": st.sampled_from(["LA", "SA", "BE"])},
        ["eig"],
        "--which",
        without=OF_THE_RUN + OF_THE_MODEL,
    ),
    "--weight-decay of squares": kind(
        {"--weight-decay": st.floats(1e-300, 1e300), "--curvature": SQUARED}, ALONE, "--weight-decay"
    ),
    "--weight-decay huge": kind(
        {"--weight-decay": st.floats(1e30, 1e308)}, ["eig", "trace"], statuses=ANY, without=["--curvature"]
    ),
    "--curvature of an own loss": kind(
        {"--curvature": DISTRIBUTION, "--loss": "user.py:squares"}, PROBLEM, "--curvature"
    ),
    "--curvature of one example": kind(
        {"--curvature": "gradient-covariance", "--samples": "1"}, PROBLEM, "--curvature"
    ),
    "--checkpoint-key alone": kind({"--checkpoint-key": nonsense}, without=["--checkpoint"]),
    "--checkpoint-key wrong": kind(
        {"--checkpoint-key": nonsense | words, "--checkpoint": "linear.pt"}, PROBLEM, "--checkpoint-key"
    ),
    "--params of nothing": kind({"--params": nonsense | text}),
    "--output of one tensor": kind({"--output": nonsense | text}),
    "--output wrong": kind(
        {"--output": nonsense | text, "--model": "user.py:returning?name=dict of tensors"},
        PROBLEM,
        "--output",
        without=OF_THE_MODEL,
    ),
    "--out of a file": kind({"--out": "user.py"}, WRITING),
    "--out below a file": kind({"--out": st.sampled_from(["user.py/below", "points.npz/a/b"])}, WRITING),
    "--out of folders in the way": kind({"--out": "taken", "-k": "1"}, ["eig"], "--out", files=IN_THE_WAY),
    "--out that cannot be": kind({"--out": st.sampled_from(["/proc/nowhere", "/dev/null", "x" * 300])}, WRITING),
}

NOT_MET = {
    "--max-products reached": kind({"--max-products": st.integers(8, 14)}, ["density"], statuses=(1,)),
    "derivatives not finite": kind({"--model": "user.py:kink"}, statuses=(1,), without=OF_THE_RUN + OF_THE_MODEL),
}

MODELS = {
    **spec("--model", "user.py:linear"),
    **ways("--model", bad_user.MODELS, "model", "--", without=OF_THE_RUN + OF_THE_MODEL),
    "--model once differentiable": kind(
        {"--model": "user.py:once", "--curvature": NEEDS_TWICE}, ALONE, "--model", without=OF_THE_RUN + OF_THE_MODEL
    ),
    "--model giving no model": kind(
        {"--model": st.sampled_from(list(bad_user.THINGS)).map("user.py:thing?name={}".format)}, share=2
    ),
    "--model returning no tensor": kind(
        {"--model": st.sampled_from(list(bad_user.THINGS)).map("user.py:returning?name={}".format)},
        without=OF_THE_MODEL,
        share=2,
    ),
    "--model failing on data": kind(
        {"--model": failing("fails_on_data")}, PROBLEM, "--model", without=OF_THE_MODEL, share=2
    ),
    "--model of torchvision": kind({"--model": misspelled("resnet18").map("torchvision:{}".format)}),
    "--model of a file that fails": kind({"--model": "own.py:linear"}, files={"own.py": st.sampled_from(NO_CODE)}),
}

OF_CHECKPOINTS = {
    "--checkpoint missing": kind({"--checkpoint": nonsense | text}),
    "--checkpoint of a folder": kind({"--checkpoint": st.sampled_from([".", "folder"])}),
    **holding("--checkpoint", CHECKPOINTS),
    **holding("--checkpoint", {f"cut {path}": truncated(GOOD[path]) for path in WEIGHTS}, share=2),
    **holding("--checkpoint", {f"flipped {path}": flipped(GOOD[path]) for path in WEIGHTS}, **MAYBE, share=2),
    **holding("--checkpoint", {"anything.pt": trees(leaves | tensors).map(torch_file)}, **MAYBE, share=3),
}

DATA = {
    **spec("--data", "user.py:data"),
    **ways("--data", bad_user.DATA, "data", "--"),
    **{
        f"--data {name}": kind({"--data": "arrays.npz"}, PROBLEM, "--", files={"arrays.npz": npz(**arrays)})
        for name, arrays in ARRAYS.items()
    },
    **holding("--data", {"noise.npz": noise, "noise.safetensors": noise, "pickle.npz": evil.map(torch_file)}),
    **holding("--data", {f"cut {path}": truncated(GOOD[path]) for path in POINTS}, share=2),
    **holding("--data", {f"flipped {path}": flipped(GOOD[path]) for path in POINTS}, **MAYBE, share=2),
    "--data giving no data": kind({"--data": st.sampled_from(NO_DATA).map("user.py:thing?name={}".format)}),
    "--data missing": kind({"--data": nonsense.map("{}.npz".format)}),
    "--data with options": kind({"--data": st.sampled_from(["digits?x=1", "points.npz?allow_pickle=true"])}),
    "--data of a folder": kind({"--data": st.sampled_from(["folder", "."])}),
    "--data of broken images": kind({"--data": "images"}, files={"images/cat/a.png": noise}, without=["--samples"]),
    "--data of torchvision": kind({"--data": misspelled("MNIST").map("torchvision:{}".format)}),
}

LOSSES = {
    **spec("--loss", "mse"),
    **each("--loss", ["mse", "bce_with_logits", "mse?reduction=sum", "user.py:loss_of_one", "huber?delta=0"]),
    **each("--loss", map("cross_entropy?{}".format, SMOOTHING + CLASS_WEIGHTS)),
    **ways("--loss", bad_user.LOSSES, "loss", without=("--curvature", "--batch-size")),
}

TRANSFORMS = {
    **spec("--transform", "user.py:transform"),
    **ways("--transform", bad_user.TRANSFORMS, "transform", "--"),
    "--transform of a class": kind({"--transform": "user.py:Items"}),
}

STRANGE_CODE = [
    "os:system?command=touch ran",
    "user.py:linear",
    "\x1b[2J.py:linear",
    "subprocess:run?args=\nspectra: all is well",
    "torch:load?f=linear.pt",
    "spectra.inputs.spec:resolve?name=user.py:linear&option=x",
]


def naming(spec: str) -> st.SearchStrategy[bytes]:
    """The record of eig with another model."""
    return saved("eig").map(
        lambda record: to_json(
            record | {"problem": record["problem"] | {"options": record["problem"]["options"] | {"model": spec}}}
        )
    )


OF_CONFIGS = {
    "--config missing": kind({"--config": nonsense.map("{}.toml".format)}),
    "--config of no suffix": kind({"--config": st.sampled_from(["user.py", "folder", "linear.pt"])}),
    **holding(
        "--config",
        TOML,
        PROBLEM,
        "--",
        without=["--curvature", "--seed", "--params", "--checkpoint", "--json"],
    ),
    **holding("--config", {"json.toml": values.map(to_json), "json.json": values.map(to_json)}, share=2),
    **holding("--config", {f"cut {command}.json": truncated_record(command) for command in ("eig", "trace")}),
    **holding(
        "--config",
        {f"changed {command}.json": changed_record(command) for command in ("eig", "trace")},
        PROBLEM,
        "-",  # whatever the change has made wrong
        statuses=ANY,
        share=3,
    ),
    "--config of a result that names code": kind(
        {"--config": "strange.json", "--model": ..., "--data": ...},
        PROBLEM,
        "--config",
        "--trust",
        files={"strange.json": st.sampled_from(STRANGE_CODE).flatmap(naming)},
    ),
    "--config of a changed checkpoint": kind(
        {"--config": "eig.json", "--model": ..., "--data": ..., "--trust": None},
        ALONE,
        "--config",
        without=["--checkpoint"],
        files={"eig.json": saved("eig").map(to_json), "linear.pt": torch_file({"weight": WEIGHT + 1, "bias": BIAS})},
    ),
}

DEFLATE = {
    "--deflate missing": kind({"--deflate": nonsense}, DEFLATING),
    "--deflate of no result": kind(
        {"--deflate": st.sampled_from(["user.py", "folder", "linear.index.json", "out/trace.json"])}, DEFLATING
    ),
    **holding("--deflate", {"json.json": values.map(to_json), "cut.json": truncated_record("eig")}, DEFLATING),
    **holding("--deflate", {"changed.json": changed_record("eig")}, DEFLATING, statuses=ANY, share=2),
    **{
        f"--deflate of {name} vectors": kind(
            {"--deflate": "old"},
            DEFLATING,
            statuses=ANY,
            share=2,
            files={"old/eig.json": saved("eig").map(to_json), "old/eig.npz": content},
        )
        for name, content in VECTORS.items()
    },
}

READERS = ["plot", "report"]  # of saved results
FIGURES = {
    "RESULT missing": kind({"RESULT": nonsense}, READERS),
    "RESULT of no result": kind({"RESULT": st.sampled_from(["user.py", "folder", "linear.index.json", "."])}, READERS),
    **{
        f"RESULT {name}": kind(
            {"RESULT": "result.json"}, readers, files={"result.json": content}, statuses=statuses, share=share
        )
        for name, content, statuses, share, readers in [
            ("of JSON", values.map(to_json), (2,), 2, READERS),
            ("of noise", noise, (2,), 1, READERS),
            *((f"cut, of {command}", truncated_record(command), (2,), 1, READERS) for command in FIELDS),
            *((f"changed, of {command}", changed_record(command), ANY, 3, READERS) for command in FIELDS),
            *(
                (f"with null, of {command}", with_null(command, field), (2,), 1, ["plot"])
                for command, field in FIELDS.items()
            ),
        ]
    },
    "RESULT of two kinds": kind({"RESULT": st.permutations(RESULTS).map(lambda some: some[:2])}, ["plot"]),
    "RESULT twice": kind({"RESULT": st.sampled_from(RESULTS).map(lambda one: [one, one])}, READERS),
    "--out of no page": kind(
        {"--out": nonsense | st.sampled_from(["a.txt", "a.htm", ".html", "a.html.png"])}, ["report"]
    ),
    "--out of no figure": kind(
        {"--out": nonsense | st.sampled_from(["a.txt", "a.jpg", "a.json", "png", ".png", "a.png.bak"])}, ["plot"]
    ),
    "--out of a folder that is a file": kind(
        {"--out": st.sampled_from(["user.py/a.png", "points.npz/a/b.pdf", "/proc/nowhere.svg"])}, ["plot"]
    ),
    "--label of another number": kind({"--label": st.lists(nonsense, min_size=2, max_size=4)}, ["plot"]),
    "--label that cannot be set": kind(
        {"--label": st.sampled_from(["", " ", "💥", "$x", "$\\nothing$", "\x1b[31m", "\udcff"])}, ["plot"]
    ),
    "--title that cannot be set": kind(
        {"--title": st.sampled_from(["💥", "$\\nothing$", "\x1b[31m", "\udcff", "$_$"])}, ["plot"]
    ),
    "--curvature of no result": kind({"--curvature": nonsense | words}, ["plot"]),
}

OF_MODELS_AND_DATA = MODELS | OF_CHECKPOINTS | DATA | LOSSES | TRANSFORMS
KINDS = THE_LINE | TOGETHER | NOT_MET | OF_MODELS_AND_DATA | OF_CONFIGS | DEFLATE | FIGURES
