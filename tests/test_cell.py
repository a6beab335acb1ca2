"""One training run as studies use it: trained once, read back afterwards."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline import cell, params
from pipeline.cell import Cell
from pipeline.data import store
from pipeline.data.sources import SOURCES
from pipeline.files import digest, write_json
from pipeline.models import architecture
from pipeline.models.weights import save_weights
from pipeline.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.fixture
def make_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cell]:
    """Cells of the smoke preset in a folder with its data; the code of the project counts as one constant."""
    p = params.parse(read_yaml(ROOT / "presets/smoke.yaml"), "smoke")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cell, "digest_code", lambda *_: "code")
    store.save(SOURCES[p.data.name](p.data), Path("data") / p.data.name, p.data.name)

    def make(method: str, seed: int = 0, **changes) -> Cell:
        return Cell(p.model_copy(update={"train": p.train.model_copy(update={"epochs": 1} | changes)}), method, seed)

    return make


@pytest.mark.parametrize("method", ["standard", "adt_exp", "adt_imp_am"])
def test_what_was_trained_is_read_back_without_a_step(method: str, make_cell, monkeypatch) -> None:
    made = make_cell(method)
    first = made.trained(CPU, Path("work"))
    assert not list(Path("work").rglob("state.pt"))
    monkeypatch.setattr(Cell, "train", lambda *_: pytest.fail("trained again"))
    again = made.trained(CPU, Path("work"))
    assert first[0] == again[0]
    for one, other in zip(first[1:], again[1:], strict=True):
        torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=0, atol=0)


def test_a_finished_run_of_this_very_cell_is_read_and_no_other(make_cell, monkeypatch) -> None:
    made, run = make_cell("adt_exp_am"), Path("runs/one")
    scores, model, adversary = made.trained(CPU, Path("work"))
    save_weights(run / "model.safetensors", model.state_dict(), architecture(made.params.model))
    save_weights(run / "adversary.safetensors", adversary.state_dict())
    write_json(run / "metrics.json", {"val_natural": scores.natural, "val_robust": scores.robust})
    write_json(run / "run.json", {"key": digest(made.description())})
    trained = []
    monkeypatch.setattr(Cell, "train", lambda self, *_: trained.append(self.seed))
    read = made.trained(CPU, Path("other"), run)
    assert read[0] == scores and not trained and not Path("other").exists()
    for one, other in zip(read[1:], (model, adversary), strict=True):
        torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=0, atol=0)
    with pytest.raises(TypeError):
        make_cell("adt_exp_am", seed=1).trained(CPU, Path("other"), run)
    assert trained == [1]


def test_other_parameters_or_another_seed_are_another_training(make_cell) -> None:
    cells = [make_cell("at_pgd"), make_cell("at_pgd", seed=1), make_cell("at_pgd", label_smoothing=0.1)]
    for made in cells:
        made.trained(CPU, Path("work"))
    assert len(list(Path("work").iterdir())) == 3


def test_the_description_has_every_switch_resolved_and_names_the_profile(make_cell) -> None:
    described = make_cell("adt_exp").description()["method_params"]
    assert described["as"] == "released" and described["accumulate"] is True and described["outer_samples"] == 1


def test_a_users_own_set_is_part_of_what_makes_a_run(make_cell, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_set.py").write_text("from pipeline.perturbation import Linf\n\nclass Mine(Linf):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    made = make_cell("at_pgd")
    threat = params.Threat(set="my_set:Mine", eps=0.2)
    own = Cell(made.params.model_copy(update={"threat": threat}), "at_pgd", 0)
    before = own.fingerprint()
    (tmp_path / "my_set.py").write_text("from pipeline.perturbation import Linf\n\nclass Mine(Linf):\n    eps = 1\n")
    assert own.fingerprint() != before
    assert "code" not in made.description()["threat"]
