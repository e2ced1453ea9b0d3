"""What to write in place of a name that no data have: by the file that has the name, or by a name that is near."""

from pathlib import Path

import pytest

from spectra.errors import SpectraError
from spectra.inputs.data import load_data

TOLD = {
    "corpus.txt": "write text:corpus.txt?length=256",
    "rows.jsonl": ".jsonl files are not supported; write a function that reads it",
    "points.npy": ".npy files are not supported; save its arrays x and y with numpy.savez, or write a function",
    "digits/val/zero/1.png": "it is one image; name the folder that holds a folder of images for each class",
    "digit/val": "did you mean digits/val?",
    "digits/vall": "did you mean digits/val?",
    "digits/val/none": "there is no none in ",
    "none/of/these": "there is no none in ",
    "cifar10": "did you mean torchvision:CIFAR10?root=FOLDER?",
    "nonsense": "it is not known data; write digits, text:FILE?length=256, a file.npz",
}


@pytest.mark.parametrize("name", TOLD)
def test_the_way_out_of_a_name_of_no_data(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in ("corpus.txt", "rows.jsonl", "points.npy", "digits/val/zero/1.png"):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text("1 2 3")
    with pytest.raises(SpectraError) as caught:
        load_data(name, None, 0)
    assert TOLD[name] in str(caught.value)
    assert "\n" not in str(caught.value)
