"""The report: one page that needs nothing but itself, whose links all lead somewhere, in a real browser."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot

from pipeline import params
from pipeline.comparison import published
from pipeline.comparison.compare import Result, compare
from pipeline.files import write_csv, write_json, write_text
from pipeline.health import checks, report
from pipeline.params import Params
from pipeline.report import content, page
from pipeline.transfer import Transfer
from pipeline.verdicts import NATURAL, Column, Verdicts
from pipeline.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
EXAMPLES = 20
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on PATH")


@pytest.fixture(scope="module")
def p() -> Params:
    """The default preset's parameters: four methods, three seeds."""
    return params.parse(read_yaml(ROOT / "presets/digits.yaml"), "digits")


@pytest.fixture(scope="module")
def finished(p: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the files of a finished reproduction; their numbers are made up."""
    folder = tmp_path_factory.mktemp("workspace")
    names, ones = [NATURAL, *p.evaluation.attacks], np.ones(EXAMPLES, np.float32)
    table: dict[str, dict[int, Verdicts]] = {}
    for place, method in enumerate(p.matrix.methods):
        for seed in p.matrix.seeds:
            columns = {
                name: Column(np.arange(EXAMPLES) < place + seed + number, ones, ones, 40, 3)
                for number, name in enumerate(names)
            }
            verdicts = Verdicts.join(columns, np.zeros(EXAMPLES, np.int64), np.arange(EXAMPLES), "")
            verdicts.save(folder / f"verdicts/{method}/seed-{seed}.npz")
            table.setdefault(method, {})[seed] = verdicts
            run_files(p, folder / f"runs/{method}/seed-{seed}", method, seed)
    results(p, table, folder / "results")
    return folder


def run_files(p: Params, folder: Path, method: str, seed: int) -> None:
    described = {
        "key": f"key of {method} {seed}",
        "method": method,
        "seed": seed,
        "data": {"name": p.data.name, "sha256": "d" * 64},
        "threat": p.threat.model_dump(),
        "model": p.model.model_dump(),
        "train": p.train.model_dump(),
        "method_params": p.method(method).model_dump(by_alias=True),
        "code": "c" * 64,
        "gradient_evaluations": 123456,
        "gradient_evaluations_per_example_and_epoch": 8,
    }
    write_json(folder / "run.json", described)
    write_json(folder / "metrics.json", {"selected_epoch": 7 + seed, "val_natural": 0.9, "val_robust": 0.5})
    (folder / "model.safetensors").write_bytes(f"weights of {method} {seed}".encode())


def results(p: Params, table: dict[str, dict[int, Verdicts]], folder: Path) -> None:
    write_json(folder / "comparison.json", made_comparison(p, table))
    failing = dict.fromkeys((check.name for check in checks.CHECKS), {"figure": 0.5, "passed": False})
    judged = {(method, seed): failing for method in p.matrix.methods for seed in p.matrix.seeds}
    write_json(folder / "health.json", report.summary(judged, "warn"))
    cells = [f"{method}-{seed}" for method in p.matrix.methods for seed in p.matrix.seeds]
    broken = np.zeros((len(cells), EXAMPLES), bool)
    found = {("pgd-20", cell): broken for cell in cells} | {("generator", cells[-1]): broken}
    Transfer.join(found, cells, np.zeros(EXAMPLES, int), np.arange(EXAMPLES)).save(folder / "transfer/verdicts.npz")
    for name, caption in content.TEXTS:
        write_text(
            folder / name, f"# {caption}\n\n## Part\n\nIt *holds* <b>so</b>.\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |\n"
        )
    for name in content.TABLES:
        write_csv(folder / name, [{"lam": 0.1, "seed": 0}], ["lam", "seed"])
    for name, *_ in content.FIGURES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        figure = pyplot.figure(figsize=(12, 4))
        figure.savefig(folder / name)
        pyplot.close(figure)


def made_comparison(p: Params, table: dict[str, dict[int, Verdicts]]) -> dict[str, Any]:
    history = [{"epoch": "1", "val_natural": "0.9", "val_robust": "0.5"}]
    results = {
        method: {seed: Result(verdicts, "d" * 64, 8, 123456, 1, history) for seed, verdicts in runs.items()}
        for method, runs in table.items()
    }
    ours = {method: {"natural": {"mean": 86.0, "std": 0.2}} for method in results}
    beside = published.beside("table-b", ours)
    return compare(results, p.data.called, "at_pgd", 0.95, resamples=50, seed=0, published=beside)


@pytest.fixture(scope="module")
def html(p: Params, finished: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished)
        return page.render(content.gather(p, Path("runs"), Path("verdicts")))


class Links(HTMLParser):
    """What a page links to, what can be linked to, and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "a":
            self.targets.append(values["href"] or "")
        elif "href" in values or "src" in values:
            self.loaded.append(values.get("href") or values.get("src") or "")
        if values.get("id"):
            self.anchors.append(values["id"] or "")


def test_every_link_leads_to_one_place_of_the_page(html: str) -> None:
    links = Links(html)
    assert len(links.targets) > 100
    assert {target for target in links.targets if target.removeprefix("#") not in links.anchors} == set()
    assert len(set(links.anchors)) == len(links.anchors)


def test_the_page_loads_nothing(html: str) -> None:
    assert all(source.startswith("data:") for source in Links(html).loaded)
    assert not re.search(r"url\(|@import|https?://", html)


def test_every_runs_value_links_to_that_run(html: str, p: Params, finished: Path) -> None:
    for method in p.matrix.methods:
        for seed in p.matrix.seeds:
            table = Verdicts.load(finished / f"verdicts/{method}/seed-{seed}.npz")
            for accuracy in table.accuracies().values():
                assert f'<a href="#{method}-{seed}">{100 * accuracy:.1f}</a>' in html


def test_a_run_names_its_checkpoint_parameters_and_commands(html: str) -> None:
    section = html.split('<details id="adt_exp-1">')[1].split("</details>")[0]
    for fact in ("key of adt_exp 1", "d" * 64, "runs/adt_exp/seed-1/model.safetensors", "dvc repro train@adt_exp-1"):
        assert fact in section
    assert "<dt>lam</dt><dd>0.01</dd>" in section and "<dt>eps</dt><dd>0.2</dd>" in section


def test_failed_checks_are_shown_as_such(html: str, p: Params) -> None:
    failures = len(checks.CHECKS) * len(p.matrix.methods) * len(p.matrix.seeds)
    assert f"{failures} failed." in html and html.count("0.5 fails") == failures


def test_published_numbers_stand_beside_ours(html: str) -> None:
    section = html.split('<h2 id="published">')[1].split("</table>")[0]
    assert "86.00 ± 0.20 / 86.50 ± 0.14" in section, "AT_PGD's natural accuracy in Table B"


def test_what_stages_wrote_for_people_is_on_the_page(html: str) -> None:
    section = html.split('<h2 id="studies">')[1].split('<h2 id="figures">')[0]
    assert section.count("<h3>Part</h3>") == len(content.TEXTS) and "<h2>" not in section
    for _, caption in content.TEXTS:
        part = section.split(f"<summary>{caption}</summary>")[1].split("</details>")[0]
        assert "<em>holds</em> &lt;b&gt;so&lt;/b&gt;" in part and re.search(r"<td[^>]*>2</td>", part)
        assert caption not in part, "the title stands in the summary"


def test_the_stage_depends_on_every_file_that_the_page_shows() -> None:
    shown = [name for names in (content.FIGURES, content.TEXTS) for name, *_ in names] + list(content.TABLES)
    dependencies = read_yaml(Path(__file__).parents[1] / "dvc.yaml")["stages"]["report"]["deps"]
    assert {f"results/{name}" for name in shown} <= set(dependencies)


def test_equal_files_give_equal_bytes(html: str, p: Params, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    assert page.render(content.gather(p, Path("runs"), Path("verdicts"))) == html


def test_text_from_files_is_escaped(p: Params, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    gathered = content.gather(p, Path("runs"), Path("verdicts")) | {"title": "<script>alert(1)</script>"}
    assert "<script>alert" not in page.render(gathered)


def browse(file: Path, *options: str) -> tuple[str, str]:
    """The page as the browser has it after its scripts ran, and what the browser complained about."""
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr"]
    command += [f"--user-data-dir={file.parent / 'profile'}", "--virtual-time-budget=3000", *options, file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, "\n".join(complaints)


@in_browser
@pytest.mark.parametrize("width", [500, 1400])
def test_in_a_browser_nothing_is_complained_about_and_nothing_sticks_out(html: str, width: int, tmp_path: Path) -> None:
    """500 pixels are the narrowest window that the browser opens."""
    measured = "<script>addEventListener('load', () => document.title = `${document.documentElement.scrollWidth}`)"
    (tmp_path / "report.html").write_text(html.replace("</body>", measured + "</script></body>"))
    dom, complaints = browse(tmp_path / "report.html", f"--window-size={width},900", "--dump-dom")
    assert complaints == ""
    assert int(re.search(r"<title>(\d+)</title>", dom).group(1)) <= width


@in_browser
def test_a_console_error_would_be_seen(html: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(html.replace("</body>", "<script>missing()</script></body>"))
    assert "missing is not defined" in browse(tmp_path / "report.html", "--dump-dom")[1]


@in_browser
def test_a_link_to_a_run_opens_it(html: str, tmp_path: Path) -> None:
    jump = "<script>location.hash = '#adt_exp-1'</script></body>"
    (tmp_path / "report.html").write_text(html.replace("</body>", jump))
    dom, _ = browse(tmp_path / "report.html", "--dump-dom")
    assert re.search(r'<details id="adt_exp-1" open', dom)
    assert re.search(r'<details id="adt_exp-2">', dom)


@in_browser
def test_it_prints(html: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(html)
    browse(tmp_path / "report.html", f"--print-to-pdf={tmp_path / 'report.pdf'}", "--no-pdf-header-footer")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
