"""Text as data: a file cut into chunks of tokens, `text:corpus.txt?length=256`.

The tokenizer is that of the model's folder or of another folder (`tokenizer=DIR`); with `tokenizer=bytes`, tokens are
the bytes of the file. A model that computes its own loss shifts the labels. For a loss of the outputs, they are shifted
here. A note says which of the two applies.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from spectra.errors import describe
from spectra.files import open_regular
from spectra.inputs.items import ItemRequirements
from spectra.inputs.sources import NamedData
from spectra.inputs.spec import input_error, parse_spec, unreadable_reason
from spectra.wording import counted

OPTION = "`data`"
TEXT = "text:"
BYTES = "bytes"
OPTIONS = ("length", "stride", "tokenizer")
INSTALL = "run pip install transformers, or use tokenizer=bytes"


def tokens(name: str, options: dict[str, Any], wanted: ItemRequirements) -> NamedData:
    """Cut a text file into chunks of tokens, with inputs and labels as the loss and the model take them.

    Args:
        name: `text:` and the path of a file in UTF-8.
        options: `length`, the number of tokens in a chunk; `stride`, from one chunk to the next, default `length`;
            `tokenizer`, a folder of transformers, or `bytes`.
        wanted: what the loss and the model take.

    Raises:
        SpectraError: no such file, no tokenizer, or fewer tokens than one chunk needs.
    """
    if unknown := [key for key in options if key not in OPTIONS]:
        raise input_error(OPTION, name, f"it has no option {unknown[0]}; its options are {', '.join(OPTIONS)}")
    path = name.removeprefix(TEXT)
    if not os.path.isfile(path):
        raise input_error(OPTION, name, f"{unreadable_reason(path, 'there is no such file')}; check the path")
    if wanted.shift is not None:
        text = f"labels of {name} are shifted already; leave shift out"
        raise input_error("`loss`", "cross_entropy?shift=true", text)
    if "length" not in options:
        raise input_error(OPTION, name, f"the number of tokens in a chunk is missing; write {name}?length=256")
    length = whole_number(name, "length", options["length"])
    stride = whole_number(name, "stride", options.get("stride", length))
    found = tokens_of(path, name, options.get("tokenizer"), wanted)
    span = length if wanted.whole else length + 1  # the label of a chunk's last token is the token after it
    if len(found) < span:
        held = counted(len(found), "token")
        raise input_error(OPTION, name, f"it holds {held}, but one chunk needs {span}; choose a smaller length")
    chunks = found.unfold(0, span, stride).contiguous()
    notes = [f"{counted(len(chunks), 'chunk')} of {counted(length, 'token')}"]
    if left := len(found) - (len(chunks) - 1) * stride - span:
        notes[0] += f"; the last {counted(left, 'token')} of the file left out"
    return NamedData(arranged(chunks, wanted), (*notes, shift_note(wanted)))


def arranged(chunks: Tensor, wanted: ItemRequirements) -> Any:
    """Make inputs and labels from chunks, named as models of transformers take them if the model's forward has them."""
    if wanted.whole:
        return {"input_ids": chunks, "labels": chunks.clone()}
    inputs, labels = chunks[:, :-1], chunks[:, 1:]
    return {"input_ids": inputs, "labels": labels} if "input_ids" in wanted.takes.names else (inputs, labels)


def shift_note(wanted: ItemRequirements) -> str:
    """Return the note on who shifts the labels."""
    if not wanted.whole:
        return "labels are the next tokens: they were shifted by one place here"
    if wanted.forwards:
        return "labels are the tokens themselves: the model has to shift them by one place, as transformers' models do"
    return "labels are the tokens themselves: the loss has to shift them by one place"


def whole_number(name: str, option: str, value: Any) -> int:
    """Return the value of an option if it is a positive integer. Raises SpectraError otherwise."""
    if type(value) is not int or value < 1:
        raise input_error(OPTION, name, f"{option} is {value!r}; give an integer above 0")
    return value


def tokens_of(path: str, name: str, tokenizer: Any, wanted: ItemRequirements) -> Tensor:
    """Read the tokens of a file, (T,) int64. Raises SpectraError."""
    with open_regular(path) as file:
        content = file.read()
    if tokenizer == BYTES:
        return torch.frombuffer(bytearray(content), dtype=torch.uint8).long()
    folder = tokenizer if isinstance(tokenizer, str) else folder_of(wanted.model)
    if folder is None:
        way_out = "add tokenizer=DIR (a folder of transformers) or tokenizer=bytes"
        raise input_error(OPTION, name, f"the model's name has no path= of a folder with a tokenizer; {way_out}")
    try:
        characters = content.decode("utf-8")
    except UnicodeDecodeError as error:
        text = f"it is not text in UTF-8 ({describe(error)}); convert it to UTF-8"
        raise input_error(OPTION, name, text) from error
    found = encoded(characters, folder, name)
    return torch.tensor(found, dtype=torch.int64)


def encoded(characters: str, folder: str, name: str) -> list[int]:
    """Tokenize a text with the tokenizer in a folder, without special tokens. Raises SpectraError."""
    option = f"{name}?tokenizer={folder}"
    if not os.path.isdir(folder):
        raise input_error(OPTION, option, "there is no such folder; name one that save_pretrained has written")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise input_error(OPTION, option, f"its tokenizer is one of transformers; {INSTALL}") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        found = tokenizer(characters, add_special_tokens=False, verbose=False)["input_ids"]
        if characters and not found:  # a folder without a vocabulary gives an empty tokenizer
            raise ValueError("it produces no tokens")
        return found
    except Exception as error:
        way_out = "save the tokenizer there with save_pretrained, or write tokenizer=DIR or tokenizer=bytes"
        raise input_error(OPTION, option, f"its tokenizer cannot be used ({describe(error)}); {way_out}") from error


def folder_of(model: str | None) -> str | None:
    """Return DIR of a model named transformers:CLASS?path=DIR; None for another name."""
    if not (model and model.startswith("transformers:")):
        return None
    path = parse_spec(model, "`model`")[1].get("path")
    return path if isinstance(path, str) else None
