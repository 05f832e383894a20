"""Safety vectors: file formats, whether one fits a model, and which positions it steers."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from minisafe.checkpoint.vectors import load_vector, save_gguf, save_npy, save_vector
from minisafe.errors import SettingError, VectorError
from minisafe.slots import covered
from minisafe.vectors import POSITIONS, SafetyVector, Steering, check_vector
from tests.support.spoil import refuses

METADATA = {
    "sa_scale": 1.5, "sa_positions": "last", "heads": [[3, 1], [0, 2]], "n_layers": 4,
    "tokenizer": "0123456789abcdef", "weights": "1e10", "note": "plain words",
}  # fmt: skip


def vector(*layers: int | None, hidden: int = 6) -> SafetyVector:
    generator = torch.Generator().manual_seed(3)
    return SafetyVector({n: torch.randn(hidden, generator=generator) for n in layers}, METADATA)


def same_layers(one: SafetyVector, other: SafetyVector) -> None:
    assert one.layers.keys() == other.layers.keys()
    assert all(torch.equal(one.layers[layer], other.layers[layer]) for layer in one.layers)


@pytest.mark.parametrize("layers", [(3,), (0, 5, 11)])
def test_what_is_saved_is_loaded(tmp_path: Path, layers: tuple[int, ...]) -> None:
    path = tmp_path / "deep" / "v.safetensors"
    save_vector(vector(*layers), path)
    found = load_vector(path)
    same_layers(found, vector(*layers))
    assert found.metadata == METADATA | {"format": "minisafe-vector"}
    assert found.hidden == 6
    assert [each.name for each in path.parent.iterdir()] == ["v.safetensors"]


def test_the_authors_format(tmp_path: Path) -> None:
    """(1, hidden), no layer: the profile or a flag says which."""
    values = np.arange(5, dtype=np.float64)[None] / 7
    np.save(tmp_path / "v.npy", values)
    found = load_vector(tmp_path / "v.npy")
    assert found.layers[None].dtype == torch.float32
    assert found.layers[None].tolist() == pytest.approx(values[0].tolist())
    assert found.at(8) == {8: found.layers[None]}
    with pytest.raises(VectorError, match="states no layer; give one with --sa-layer"):
        found.at(None)


def test_the_authors_format_is_written(tmp_path: Path) -> None:
    save_npy(vector(2), tmp_path / "v.npy")
    assert np.load(tmp_path / "v.npy").shape == (1, 6)
    assert torch.equal(load_vector(tmp_path / "v.npy").layers[None], vector(2).layers[2])
    with pytest.raises(VectorError, match="holds one layer"):
        save_npy(vector(1, 2), tmp_path / "w.npy")


def test_control_vectors_of_llama_cpp(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "v.gguf"
    save_gguf(vector(1, 4), path)
    same_layers(load_vector(path), vector(1, 4))
    names = [tensor.name for tensor in gguf.GGUFReader(str(path)).tensors]
    assert names == ["direction.1", "direction.4"]  # added after these 0-based layers
    with pytest.raises(VectorError, match="the vector is for layer 0"):
        save_gguf(vector(0, 4), tmp_path / "w.gguf")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(VectorError, match="not a GGUF file"):
        load_vector(path)


def test_a_vector_moves_to_another_layer() -> None:
    (values,) = vector(3).layers.values()
    assert vector(3).at(None).keys() == {3}
    (moved,) = vector(3).at(7).items()
    assert moved[0] == 7
    assert torch.equal(moved[1], values)
    with pytest.raises(VectorError, match="has 2 layers; it cannot be moved to layer 7"):
        vector(1, 2).at(7)


# ---- files that are no vectors -----------------------------------------------------------------


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match=r"v.npy: no such file"):
        load_vector(tmp_path / "v.npy")
    (tmp_path / "v.pt").write_bytes(b"")
    with pytest.raises(VectorError, match="unknown format"):
        load_vector(tmp_path / "v.pt")


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(5, np.float32),
        np.zeros((2, 5), np.float32),
        np.zeros((1, 5, 1), np.float32),
        np.zeros((1, 5), np.int64),
        np.zeros((1, 5), np.complex64),
        np.array(3.0),
    ],
    ids=lambda values: f"{values.dtype}{values.shape}",
)
def test_arrays_of_another_shape(tmp_path: Path, values: np.ndarray) -> None:
    np.save(tmp_path / "v.npy", values)
    with pytest.raises(VectorError, match=r"expected floats of \(1, hidden\)"):
        load_vector(tmp_path / "v.npy")


def test_pickles_are_never_read(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    with pytest.raises(VectorError, match=r"object array .* expected floats"):
        load_vector(tmp_path / "v.npy")


@pytest.mark.parametrize("name", ["v.npy", "v.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"nonsense" * 20])
def test_files_that_hold_something_else(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VectorError, match=name):
        load_vector(tmp_path / name)


def test_a_truncated_file(tmp_path: Path) -> None:
    for name, save in (("v.safetensors", save_vector), ("v.npy", save_npy)):
        save(vector(1), tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-3])
        with pytest.raises(VectorError, match=name):
            load_vector(tmp_path / name)


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": torch.ones(4)},
        {"layer.x": torch.ones(4)},
        {"layer.-1": torch.ones(4)},
        {"layer.1": torch.ones(1, 4)},
        {"layer.1": torch.tensor(1.0)},
        {"layer.1": torch.ones(4), "layer.2": torch.ones(5)},
        {},
    ],
    ids=lambda tensors: ",".join(f"{name}{tuple(t.shape)}" for name, t in tensors.items()),
)
def test_tensors_that_are_no_vectors(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / "v.safetensors")
    with pytest.raises(VectorError, match=r"v.safetensors: .*expected"):
        load_vector(tmp_path / "v.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    broken = SafetyVector({2: torch.tensor([1.0, value])})
    save_vector(broken, tmp_path / "v.safetensors")
    save_npy(broken, tmp_path / "v.npy")
    for name in ("v.safetensors", "v.npy"):
        with pytest.raises(VectorError, match="NaN or infinite"):
            load_vector(tmp_path / name)


# ---- whether it fits ---------------------------------------------------------------------------


def test_a_vector_for_another_model() -> None:
    made = vector(1)
    check_vector(made, "v", 6, 4, METADATA["tokenizer"])
    check_vector(SafetyVector(made.layers), "v", 6, 9, "any")  # states nothing to disagree with
    with pytest.raises(VectorError, match=r"v: the vector has 6 values; .* stream has 8"):
        check_vector(made, "v", 8, 4, METADATA["tokenizer"])
    with pytest.raises(VectorError, match="v: made for a model of 4 layers; this one has 5"):
        check_vector(made, "v", 6, 5, METADATA["tokenizer"])
    with pytest.raises(VectorError, match="v: made with another tokenizer"):
        check_vector(made, "v", 6, 4, "another")


# ---- positions ---------------------------------------------------------------------------------

starts = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@st.composite
def conversations(draw: st.DrawFn) -> list[tuple[int, int | None]]:
    """Answers at `[start, stop)`, the last one open."""
    found, place = [], 0
    for prompt, answer in draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)))):
        found.append((place + prompt, place + prompt + answer))
        place += prompt + answer
    return [*found, (place + draw(st.integers(1, 5)), None)]


@given(st.sampled_from(POSITIONS), conversations())
def test_which_positions_are_steered(positions: str, answers: list[tuple[int, int | None]]) -> None:
    """The prompt's last token predicts the answer's first; an answer's own tokens are generated."""
    end = answers[-1][0] + 5
    generated = {p for start, stop in answers for p in range(start, stop or end)}
    asking = {start - 1 for start, _ in answers}
    expected = {
        "prompt": asking, "generated": generated, "last": asking | generated,
        "all": set(range(end)),
    }[positions]  # fmt: skip
    spans = Steering({0: torch.ones(2)}, 1.0, positions).spans(answers)
    assert covered(spans, 0, end) == sorted(expected)
    assert all(stop is None or start < stop for start, stop in spans)


def test_an_answer_without_tokens_has_nothing_generated() -> None:
    assert Steering({}, 1.0, "generated").spans([(4, 4), (6, None)]) == ((6, None),)
    assert Steering({}, 1.0, "last").spans([(4, 4), (6, None)]) == ((3, 4), (5, None))


def test_unknown_positions() -> None:
    with pytest.raises(
        SettingError, match=r"sa_positions is 'first'; expected one of prompt, last"
    ):
        Steering({}, 1.0, "first")


def test_slots_of_a_steering() -> None:
    steering = Steering({1: torch.ones(2), 3: torch.zeros(2)}, 2.0, "all")
    slots = steering.slots(4, ((0, None),))
    assert [(slot.layer, slot.rows, slot.scale) for slot in slots] == [
        (1, (4,), 2.0),
        (3, (4,), 2.0),
    ]
    assert steering.slots(0, ()) == []
    assert Steering({1: torch.ones(2)}, 0.0, "all").slots(0, ((0, None),)) == []


# ---- names, types and metadata that were once let through ---------------------------------------


@pytest.mark.parametrize(
    "tensors",
    [
        {"layer.²": torch.ones(4)},
        {"layer.٣": torch.ones(4)},
        {"layer.04": torch.ones(4)},
        {"layer.4": torch.ones(4), "layer.04": torch.zeros(4)},
        {"layer.512": torch.ones(4)},
        {"layer." + "9" * 5000: torch.ones(4)},
        {"layer.1": torch.ones(4, dtype=torch.uint8)},
        {"layer.1": torch.ones(4, dtype=torch.int64)},
        {"layer.1": torch.ones(4, dtype=torch.bool)},
        {"layer.1": torch.ones(4).to(torch.float8_e4m3fn)},
        {"layer.1": torch.ones(0)},
    ],
    ids=lambda tensors: next(iter(tensors))[:12] + str(next(iter(tensors.values())).dtype),
)
def test_one_spelling_a_layer_and_floats_only(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    save_file(tensors, tmp_path / "v.safetensors")
    refuses(VectorError, lambda: load_vector(tmp_path / "v.safetensors"), "v.safetensors: ")


def test_metadata_that_is_no_sound_json_stays_text(tmp_path: Path) -> None:
    deep, big = "[" * 100_000, "9" * 5000
    metadata = {"deep": deep, "big": big, "nan": "NaN", "twice": '{"a": 1, "a": 2}', "n": "3"}
    save_file({"layer.1": torch.ones(2)}, tmp_path / "v.safetensors", metadata)
    assert load_vector(tmp_path / "v.safetensors").metadata == metadata | {"n": 3}


def test_a_missing_vector_is_told_all_formats(tmp_path: Path) -> None:
    refuses(
        VectorError,
        lambda: load_vector(tmp_path / "v.gguf"),
        "no such file",
        ".safetensors, .npy, .gguf",
    )


# ---- written whole -----------------------------------------------------------------------------

SAVERS = {".safetensors": save_vector, ".npy": save_npy, ".gguf": save_gguf}
OUTGROWS = """
import resource, signal, sys
import torch
from minisafe.errors import OutputError
from minisafe.checkpoint.vectors import save_gguf, save_npy, save_vector
from minisafe.vectors import SafetyVector

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for ending, save in ((".safetensors", save_vector), (".npy", save_npy), (".gguf", save_gguf)):
    try:
        save(SafetyVector({3: torch.ones(10_000)}), sys.argv[1] + "/v" + ending)
    except OutputError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on a file's size stands for a disk's."""
    pytest.importorskip("gguf")
    run = subprocess.run(
        [sys.executable, "-c", OUTGROWS, str(tmp_path)], capture_output=True, text=True, check=True
    )
    lines = run.stdout.splitlines()
    assert len(lines) == 3, run.stderr
    assert all("the disk is full" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="links and modes of POSIX")
@pytest.mark.parametrize("ending", SAVERS)
def test_no_link_is_followed_and_the_mode_is_an_ordinary_files(tmp_path: Path, ending: str) -> None:
    if ending == ".gguf":
        pytest.importorskip("gguf")
    (tmp_path / "precious").write_text("before")
    for name in ("v" + ending, f"v{ending}.tmp", f".v{ending}.tmp"):
        (tmp_path / name).symlink_to(tmp_path / "precious")
    before = os.umask(0o022)
    try:
        SAVERS[ending](vector(3), tmp_path / ("v" + ending))
    finally:
        os.umask(before)
    assert (tmp_path / "precious").read_text() == "before"
    assert stat.S_IMODE((tmp_path / ("v" + ending)).lstat().st_mode) == 0o644
    assert len(list(tmp_path.iterdir())) == 4
    load_vector(tmp_path / ("v" + ending))


@pytest.mark.parametrize("ending", SAVERS)
def test_a_writer_that_fails_leaves_nothing(tmp_path: Path, ending: str) -> None:
    """A value that the format cannot hold, met when half of the file is written."""
    if ending == ".gguf":
        pytest.importorskip("gguf")
    broken = SafetyVector({3: torch.ones(4).to(torch.bfloat16).to_sparse()})
    with pytest.raises(Exception, match=r".+"):
        SAVERS[ending](broken, tmp_path / ("v" + ending))
    assert list(tmp_path.iterdir()) == []
