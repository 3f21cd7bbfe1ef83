"""Tables and models as other people write them."""

import numpy as np
import pandas as pd
import pytest
import torch
from feat_extract import model_file, submission
from feat_extract.labels import read_labels, read_table
from recon4d import InputError
from safetensors.torch import save_file

CPU = torch.device("cpu")
FRAME = pd.DataFrame({"sequence": ["a/1", "b;2", "c"], "x": [1, 0, 1], "y": [0, 0, 1]})
TABLES = {
    "commas": lambda path: FRAME.to_csv(path, index=False),
    "semicolons": lambda path: FRAME.to_csv(path, index=False, sep=";"),
    "tabs": lambda path: FRAME.to_csv(path, index=False, sep="\t"),
    "an index": lambda path: FRAME.to_csv(path),
    "an index without gaps no more": lambda path: FRAME.set_index(pd.Index([4, 7, 9])).to_csv(path),
    "an index read and written": lambda path: FRAME.reset_index(names="Unnamed: 0").to_csv(path, index=False),
    "names as index": lambda path: FRAME.set_index("sequence").rename_axis(None).to_csv(path),
    "floats": lambda path: FRAME.astype({"x": float, "y": float}).to_csv(path, index=False),
    "booleans": lambda path: FRAME.astype({"x": bool, "y": bool}).to_csv(path, index=False),
    "Excel's TRUE": lambda path: path.write_text('sequence;x;y\r\na/1;TRUE;FALSE\r\n"b;2";FALSE;FALSE\r\nc;TRUE;TRUE'),
    "Excel's sep": lambda path: path.write_text("sep=;\nsequence;x;y\na/1;1;0\n\"b;2\";0;0\nc;1;1\n"),
    "UTF-16": lambda path: FRAME.to_csv(path, index=False, sep="\t", encoding="utf-16"),
    "a mark of UTF-8": lambda path: FRAME.to_csv(path, index=False, encoding="utf-8-sig"),
    "empty rows": lambda path: path.write_text("sequence, x , y\na/1,1,0\n,,\nb;2,0,0\nc, 1,1\n,,\n\n"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLES)
def test_tables_of_spreadsheets_and_pandas(kind, tmp_path):
    TABLES[kind](tmp_path / "labels.csv")
    found = read_labels(tmp_path / "labels.csv", ["x", "y"])
    assert {name: labels.tolist() for name, (labels, _) in found.items()} == {"a/1": [1, 0], "b;2": [0, 0], "c": [1, 1]}


def test_numbers_that_are_names(tmp_path):
    (tmp_path / "a.csv").write_text(",x\n17,1\n4,0\n")
    assert list(read_labels(tmp_path / "a.csv", ["x"])) == ["17", "4"]


def test_umlauts_of_windows(tmp_path):
    (tmp_path / "a.csv").write_bytes("sequence;x\nMüller;1\n".encode("cp1252"))
    assert read_table(tmp_path / "a.csv")[0]["sequence"] == "Müller"


@pytest.mark.parametrize(("value", "said"), [("2", "has 2; labels"), ("", "has nothing; labels"), ("0.5", "has 0.5;")])
def test_other_labels_are_refused(value, said, tmp_path):
    (tmp_path / "a.csv").write_text(f"sequence,x\na,1\nb,{value}\n")
    with pytest.raises(InputError, match=said):
        read_labels(tmp_path / "a.csv", ["x"])


class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(12, 5)

    def logits(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.layer(inputs["feat2d"].mean(1))

    def forward(self, inputs: dict[str, torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        return self.logits(inputs)


class Pair(Plain):
    def forward(self, inputs: dict[str, torch.Tensor], mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs["feat2d"].mean(1), self.logits(inputs)


class Named(Plain):
    def forward(self, inputs: dict[str, torch.Tensor], mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"attention": mask.float(), "scores": self.logits(inputs)}


class Two(Plain):
    def forward(self, inputs: dict[str, torch.Tensor], mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.logits(inputs), "probabilities": self.logits(inputs).sigmoid()}


class Unclear(Plain):
    def forward(self, inputs: dict[str, torch.Tensor], mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"head": self.logits(inputs), "other": self.logits(inputs) * 2}


class Deep(Plain):
    def forward(self, inputs: dict[str, torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        return self.logits(inputs)[:, None]


@pytest.mark.parametrize("kind", [Plain, Pair, Named, Two, Deep, "half", "bfloat16"])
def test_answers_of_other_models(kind, numbers, tmp_path):
    torch.manual_seed(0)
    other = numbers.model_copy(update={"checkpoint": str(tmp_path / "other.pt")})
    weights = Plain().state_dict()
    model = Plain() if isinstance(kind, str) else kind()
    model.load_state_dict(weights)
    torch.jit.script(model.to(getattr(torch, kind)) if isinstance(kind, str) else model).save(other.checkpoint)
    said = submission.submit(other, CPU, force=True)["predicted"]
    reference = Plain()
    reference.load_state_dict(weights)
    torch.jit.script(reference).save(other.checkpoint)
    wanted = submission.submit(other, CPU, force=True)["predicted"]
    assert np.abs(np.array(list(said.values())) - list(wanted.values())).max() <= (2 if isinstance(kind, str) else 0)
    assert any(wanted.values())


def test_an_unclear_answer_is_refused_by_its_names(numbers, tmp_path):
    other = numbers.model_copy(update={"checkpoint": str(tmp_path / "other.pt")})
    torch.jit.script(Unclear()).save(other.checkpoint)
    with pytest.raises(InputError, match="answers head, other, which could all be the logits"):
        submission.submit(other, CPU, force=True)


@pytest.mark.parametrize(
    ("save", "reason"),
    [
        (lambda path: torch.save(Plain().state_dict(), path), "of torch.save: weights or a pickled model"),
        (lambda path: torch.save({"a": 1}, path, _use_new_zipfile_serialization=False), "a pickle of torch.save"),
        (lambda path: save_file(Plain().state_dict(), path), "of safetensors"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "Git LFS"),
        (lambda path: path.write_text("<!DOCTYPE html><html></html>"), "a web page"),
        (lambda path: path.write_bytes(b"nothing"), "fetch or train it again"),
    ],
)
def test_the_true_reason_when_it_is_no_torchscript(save, reason, tmp_path):
    save(tmp_path / "model.pt")
    with pytest.raises(InputError, match=rf"is not a readable TorchScript file \(.*{reason}"):
        model_file.read(tmp_path / "model.pt")
