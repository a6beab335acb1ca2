"""A tiny workspace with everything that a finished run leaves, dvc.lock written out by hand, committed to git."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import machine, params
from pipeline.files import digest_file, read_json, write_json
from pipeline.reproduction import receipt
from pipeline.verdicts import Column, Verdicts
from pipeline.yaml_files import parse_text, read_yaml

ROOT = Path(__file__).parents[1]
METHODS, SEEDS = ("at_pgd", "adt_exp"), (0, 1, 2)
ATTACKS = ("natural", "fgsm", "pgd-3")
IMAGES = 100
STAGES = """\
stages:
  prepare:
    cmd: python -m stages.prepare
    deps: [pipeline/data]
    params: [data]
    outs: ["data/${data.name}"]
  train:
    matrix: {method: "${matrix.methods}", seed: "${matrix.seeds}"}
    cmd: python -m stages.train --method ${item.method} --seed ${item.seed}
    deps: ["data/${data.name}", pipeline/data, pipeline/loop.py]
    params: ["methods.${item.method}", train]
    outs: ["runs/${item.method}/seed-${item.seed}/model.safetensors"]
    metrics: ["runs/${item.method}/seed-${item.seed}/run.json": {cache: false}]
  attack:
    matrix: {method: "${matrix.methods}", seed: "${matrix.seeds}"}
    cmd: python -m stages.attack --method ${item.method} --seed ${item.seed}
    deps: ["runs/${item.method}/seed-${item.seed}/model.safetensors"]
    params: [evaluation]
    outs: ["verdicts/${item.method}/seed-${item.seed}.npz"]
  compare:
    cmd: python -m stages.compare
    deps: [verdicts]
    params: [comparison, matrix]
    outs: [results/comparison.json: {cache: false}, results/comparison.md: {cache: false}]
"""


class Recorded:
    """The workspace in `folder`: files, their lock, a receipt of this machine, one commit with all of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self) -> None:
        text = (ROOT / "presets/smoke.yaml").read_text()
        text = text.replace("methods: [at_pgd, adt_exp, adt_exp_am, adt_imp_am]", "methods: [at_pgd, adt_exp]")
        text = text.replace("\n  seeds: [0, 1]\n", "\n  seeds: [0, 1, 2]\n", 1)
        files = {"params.yaml": text, "dvc.yaml": STAGES, ".dvcignore": "# byte code\n__pycache__/\n"}
        files |= {"pipeline/data/a.py": "1", "pipeline/data/b.py": "2", "pipeline/loop.py": "3"}
        files |= {f"data/digits/{part}.npz": part for part in ("test", "train")}
        files[".gitignore"] = "/data\n/verdicts\n*.safetensors\n/.dvc\n/.work\n"
        for name, content in files.items():
            self.write(name, content)
        self.results({(method, seed): 10 * seed for method in METHODS for seed in SEEDS})
        self.lock()
        self.git("init", "--quiet")
        self.record()

    @property
    def params(self) -> params.Params:
        return params.load(self.folder / "params.yaml")

    def write(self, name: str, content: str) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(content)

    def replace(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text, f"{old} is not in {name}"
        self.write(name, text.replace(old, new, 1))

    def git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.folder), "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "made")

    def results(self, broken: dict[tuple[str, int], int]) -> None:
        """Checkpoints, and verdict tables where `broken` images fall to FGSM and one more to PGD; the comparison."""
        methods: dict[str, Any] = {}
        for (method, seed), count in broken.items():
            run = f"runs/{method}/seed-{seed}"
            self.write(f"{run}/model.safetensors", f"{method} {seed} {count}")
            checkpoint = digest_file(self.folder / run / "model.safetensors")
            self.write(f"{run}/run.json", json.dumps(description(method, seed)))
            falls = {"natural": 0, "fgsm": count, "pgd-3": count + 1}
            zeros = np.zeros(IMAGES, np.float32)
            columns = {name: Column(np.arange(IMAGES) < number, zeros, zeros) for name, number in falls.items()}
            index = np.arange(IMAGES)
            table = Verdicts.join(columns, index % 10, index, checkpoint)
            table.save(self.folder / "verdicts" / method / f"seed-{seed}.npz")
            for name, number in (falls | {"worst-case": count + 1}).items():
                methods.setdefault(method, {}).setdefault(name, {})[str(seed)] = 100.0 - number
        summaries = {m: {name: summary(runs) for name, runs in metrics.items()} for m, metrics in methods.items()}
        write_json(self.folder / "results/comparison.json", {"test_examples": IMAGES, "methods": summaries})
        self.write("results/comparison.md", "a table")

    def lock(self) -> None:
        """Write dvc.lock for the files as they are, and the listings of folders that DVC would cache."""
        settings = read_yaml(self.folder / "params.yaml")
        stages: dict[str, Any] = {}
        for name, stage in parse_text(STAGES, "")["stages"].items():
            for method, seed in [(m, s) for m in METHODS for s in SEEDS] if "matrix" in stage else [("", 0)]:
                full_name = f"{name}@{method}-{seed}" if method else name
                stages[full_name] = self._entry(json.dumps(stage), method, seed, settings)
        self.write("dvc.lock", json.dumps({"schema": "2.0", "stages": stages}, indent=1))

    def _entry(self, template: str, method: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
        for key, value in (("item.method", method), ("item.seed", seed), ("data.name", "digits")):
            template = template.replace(f"${{{key}}}", str(value))
        stage = json.loads(template)
        outs = [*stage["outs"], *stage.get("metrics", [])]
        values = {key: settings["methods"][method] if "." in key else settings[key] for key in stage["params"]}
        return {
            "cmd": stage["cmd"],
            "deps": [self._item(path) for path in stage["deps"]],
            "params": {"params.yaml": values},
            "outs": [self._item(out if isinstance(out, str) else next(iter(out))) for out in outs],
        }

    def _item(self, path: str) -> dict[str, str]:
        """A file or folder as DVC locks it; the format of listings is that of files under .dvc/cache."""
        place = self.folder / path
        if place.is_file():
            return {"path": path, "hash": "md5", "md5": hashlib.md5(place.read_bytes()).hexdigest()}
        found = sorted(str(file.relative_to(place)) for file in place.rglob("*") if file.is_file())
        rows = [f'{{"md5": "{hashlib.md5((place / f).read_bytes()).hexdigest()}", "relpath": "{f}"}}' for f in found]
        listing = f"[{', '.join(rows)}]"
        md5 = hashlib.md5(listing.encode()).hexdigest() + ".dir"
        self.write(f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}", listing)
        return {"path": path, "hash": "md5", "md5": md5}

    def record(self, **changes: str) -> None:
        """Commit everything with a receipt of this machine, of which `changes` are not true."""
        made_by = {"machine": machine.fingerprint(self.params.runtime), "libraries": receipt.libraries()}
        for part in made_by.values():
            part |= {name: value for name, value in changes.items() if name in part}
        write_json(self.folder / "receipt.json", {"dvc.lock": digest_file(self.folder / "dvc.lock"), **made_by})
        self.commit()

    def comparison(self) -> dict[str, Any]:
        return read_json(self.folder / "results/comparison.json")


def summary(runs: dict[str, float]) -> dict[str, Any]:
    values = np.array(list(runs.values()))
    return {"mean": round(float(values.mean()), 4), "std": round(float(values.std(ddof=1)), 4), "runs": runs}


def description(method: str, seed: int) -> dict[str, Any]:
    return {
        "key": hashlib.sha256(f"{method} {seed}".encode()).hexdigest(),
        "method": method,
        "seed": seed,
        "data": {"name": "digits", "sha256": "f2e8"},
        "threat": {"set": "linf", "eps": 0.2},
        "model": {"name": "small_cnn"},
        "train": {"epochs": 2, "milestones": None},
        "method_params": {"as": "released", "steps": 2},
    }
