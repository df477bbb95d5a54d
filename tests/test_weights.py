"""Shipped weights: the search order, the hashes, and what is refused."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mathkit import data
from studies import ship

MADE = {"command": "make patient", "seed": 3, "metrics": {"r2": 0.987654, "ks": [0.1, 0.25]}}


def tensors(path: Path, **more: torch.Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.arange(6.0).reshape(2, 3).half()} | more, path)
    return path


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with one shipped file, found through MATHKIT_DATA."""
    folder = tmp_path / "data"
    ship.copy_in(
        {"reader.safetensors": tensors(tmp_path / "runs/r.safetensors")}, **MADE, into=folder
    )
    monkeypatch.setenv("MATHKIT_DATA", str(folder))
    return folder


def test_the_committed_manifest_is_valid_and_readme_is_made_from_it() -> None:
    folder = data.clone()
    files = data.manifest(folder)
    assert (folder / "README.md").read_text("utf-8") == ship.readme(files)
    for entry in files:
        data.verify(folder, entry)


def test_an_empty_manifest_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ship.write_manifest(tmp_path, [])
    monkeypatch.setenv("MATHKIT_DATA", str(tmp_path))
    assert data.manifest(tmp_path) == []
    assert "Nothing" in (tmp_path / "README.md").read_text("utf-8")
    assert data.folders()[0] == tmp_path


@pytest.mark.parametrize("text", ["", "[]", '{"files": [{"path": "a"}]}', '{"files": 3}'])
def test_a_broken_manifest_says_what_one_is(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r'is no manifest: expected \{"files"'):
        data.manifest(tmp_path)


def test_search_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [tmp_path / "named", tmp_path / "site/mathkit/data", tmp_path / "site/data"]
    for i, place in enumerate(places):
        source = tensors(tmp_path / f"{i}.safetensors", i=torch.tensor([float(i)]))
        ship.copy_in({"a.safetensors": source}, **MADE, into=place)
    monkeypatch.setattr(data, "__file__", str(tmp_path / "site/mathkit/data.py"))
    monkeypatch.setenv("MATHKIT_DATA", str(places[0]))
    for i, place in enumerate(places):
        assert data.folders() == places[i:]
        assert data.load_tensors("a.safetensors")["i"].item() == i
        if i == 0:
            monkeypatch.delenv("MATHKIT_DATA")
        else:
            (place / "manifest.json").unlink()
    assert data.folders() == []
    with pytest.raises(FileNotFoundError, match="none yet"):
        data.find_network("a.safetensors")


def test_a_wrong_data_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATHKIT_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="MATHKIT_DATA=.*nowhere.*unset it"):
        data.find_network("reader.safetensors")


def test_shipped_weights_come_back(shipped: Path) -> None:
    assert torch.equal(
        data.load_tensors("reader.safetensors")["w"], torch.arange(6.0).reshape(2, 3)
    )
    (entry,) = data.manifest(shipped)
    assert set(entry) == {"path", "size", "sha256", "command", "seed", "metrics", "licence"}
    assert entry["size"] == (shipped / "reader.safetensors").stat().st_size
    card = (shipped / "README.md").read_text("utf-8")
    assert all(s in card for s in (entry["sha256"][:16], "make patient", "0.9877", "0.1, 0.25"))


def test_one_flipped_bit_is_refused(shipped: Path) -> None:
    path = shipped / "reader.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not the file listed.*SHA-256.*git checkout"):
        data.load_tensors("reader.safetensors")
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="not the file listed.*bytes"):
        data.find_network("reader.safetensors")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="listed in manifest.json but missing"):
        data.find_network("reader.safetensors")


def test_an_unlisted_file_is_not_found_and_the_listed_are_named(shipped: Path) -> None:
    tensors(shipped / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="reader.safetensors"):
        data.find_network("other.safetensors")


def test_a_folder_replaces_what_was_listed_under_its_name(shipped: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    tensors(first / "unet/a.safetensors"), (first / "config.json").write_text("{}")
    tensors(second / "unet/b.safetensors"), (second / "model_index.json").write_text("{}")
    ship.copy_in({"alice": first}, **MADE, into=shipped)
    ship.copy_in({"alice": second}, **MADE, into=shipped)
    listed = [e["path"] for e in data.manifest(shipped)]
    assert listed == ["alice/model_index.json", "alice/unet/b.safetensors", "reader.safetensors"]
    assert not (shipped / "alice/unet/a.safetensors").exists()
    assert data.find_network("alice") == shipped / "alice" and data.built_in() == [
        "alice",
        "understudy",
    ]
    assert [bool(e["metrics"]) for e in data.manifest(shipped)] == [False, True, True]


def refusals(tmp_path: Path) -> dict[str, tuple[Any, str]]:
    pickled = tmp_path / "w.bin"
    torch.save({"w": torch.ones(1)}, pickled)
    nan = tensors(tmp_path / "nan.safetensors", bad=torch.tensor([torch.nan]))
    large = tensors(tmp_path / "large.safetensors", big=torch.zeros(4_000_000))
    part = {f"p{i}": tensors(tmp_path / f"p{i}", big=torch.zeros(2_500_000)) for i in range(3)}
    return {
        "pickle": ({"w.bin": pickled}, "is a pickle"),
        "nan": ({"nan.safetensors": nan}, "NaN or infinity in bad"),
        "large": ({"large.safetensors": large}, "under 16 MB"),
        "sum": (part, "under 24 MB"),
        "outside": ({"../w": nan}, "no name inside"),
        "index": ({"manifest.json": nan}, "no name inside"),
        "empty": ({"alice": tmp_path / "nothing"}, "nothing to ship"),
    }


@pytest.mark.parametrize("case", ["pickle", "nan", "large", "sum", "outside", "index", "empty"])
def test_shipping_refuses_and_changes_nothing(shipped: Path, tmp_path: Path, case: str) -> None:
    sources, message = refusals(tmp_path)[case]
    before = {p: p.read_bytes() for p in shipped.rglob("*") if p.is_file()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ship.copy_in(sources, **MADE, into=shipped)
    assert {p: p.read_bytes() for p in shipped.rglob("*") if p.is_file()} == before


class Malicious:
    """Touches a file when unpickled."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (self.target,)


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    torch.save({"w": torch.ones(1), "x": Malicious(str(mark))}, tmp_path / "a.bin")
    (tmp_path / "b.bin").write_bytes(pickle.dumps(Malicious(str(mark)), protocol=2))
    for name in ("a.bin", "b.bin"):
        with pytest.raises(ValueError, match="refused.*weights-only.*safetensors"):
            data.read_tensors(tmp_path / name)
    assert not mark.exists()
    pickle.loads((tmp_path / "b.bin").read_bytes())
    assert mark.exists(), "the planted pickle is one that would act"


def test_what_read_accepts_and_refuses(tmp_path: Path) -> None:
    state = {"w": torch.randn(3)}
    torch.save(state, tmp_path / "good.bin")
    assert torch.equal(data.read_tensors(tmp_path / "good.bin")["w"], state["w"])
    torch.save({"w": 3}, tmp_path / "number.bin")
    (tmp_path / "empty.bin").write_bytes(b"")
    whole = tensors(tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-2])
    tensors(tmp_path / "inf.safetensors", v=torch.tensor([torch.inf]))
    for name, message in {
        "number.bin": "dictionary of tensors",
        "empty.bin": "refused",
        "cut.safetensors": "no whole safetensors file",
        "inf.safetensors": "NaN or infinity in v",
    }.items():
        with pytest.raises(ValueError, match=message):
            data.read_tensors(tmp_path / name)


def test_info_prints_facts_and_says_what_differs(shipped: Path) -> None:
    good = str(data.info())
    assert torch.__version__ in good and "threads" in good and "DIFFERS" not in good
    assert data.manifest(shipped)[0]["sha256"][:16] in good
    files = data.manifest(shipped)
    files[0]["sha256"] = "0" * 64
    (shipped / "manifest.json").write_text(json.dumps({"files": files}))
    assert data.info()["reader.safetensors"].startswith("DIFFERS")
    (shipped / "reader.safetensors").unlink()
    assert data.info()["reader.safetensors"] == "MISSING"
