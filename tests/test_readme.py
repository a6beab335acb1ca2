"""README shows what was measured: its table is the committed one, its files and commands exist."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from pipeline import cli
from pipeline.adversaries.profiles import PROFILES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_table_is_the_one_the_default_run_wrote(committed: Callable[[str], bytes]) -> None:
    table = committed("results/comparison.md").decode().split("\n", 2)[2].strip()
    assert table in committed("README.md").decode()


def test_every_file_of_the_tree_exists_and_every_module_is_in_it() -> None:
    tree = README.split("## The house")[1].split("```")[1]
    named = set(re.findall(r"[\w/]+\.py|[\w/]+/(?=\s)", tree))
    modules = {path.name for path in (ROOT / "pipeline").glob("[!_]*.py")}
    folders = {f"{path.name}/" for path in (ROOT / "pipeline").iterdir() if path.is_dir() and path.name[0] != "_"}
    assert modules | folders <= named
    assert all((ROOT / name).exists() or (ROOT / "pipeline" / name).exists() for name in named)


def test_every_figure_and_page_shown_exists() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
        assert not [link for link in links if not (page.parent / link).exists()], page
    assert len(re.findall(r"!\[", README)) >= 4


def test_the_table_of_switches_is_the_one_in_force() -> None:
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in README.splitlines()]
    shown = {(r[0], r[1]): (r[2], r[3]) for r in rows if len(r) == 5 and r[0] in PROFILES}

    def word(value: object) -> str:
        return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

    held = {
        (method, switch): (word(values["released"]), word(values["paper"]))
        for method, switches in PROFILES.items()
        for switch, values in switches.items()
    }
    assert shown == held


def test_the_table_of_speeds_is_the_recorded_one() -> None:
    recorded = json.loads((ROOT / "benchmarks/results/training-cpu.json").read_text())["rows"]
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in README.splitlines()]
    shown = [row[1:] for row in rows if len(row) == 7 and row[2].endswith(" ms")]
    held = [
        [row["method"], f"{row['released_ms']:.0f} ms"]
        + [
            cell
            for precision in ("fp32", "bf16")
            for cell in (f"{row[precision]['ms']:.0f} ms", f"{row[precision]['times_faster']['median']:.2f}")
        ]
        for row in recorded
    ]
    assert shown == held


def test_the_table_of_defences_is_the_recorded_one() -> None:
    recorded = json.loads((ROOT / "benchmarks/results/defences-cpu.json").read_text())["rows"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines()]
    header = rows.index(["defence", "PGD-20, %", "worst case, %", "failed checks"])
    shown = rows[header + 2 : header + 10]
    for row, name in zip(shown, dict.fromkeys(found["defence"] for found in recorded), strict=True):
        found = [run for run in recorded if run["defence"] == name]
        for place, attack in ((1, "pgd-20"), (2, "worst-case")):
            values = [run["accuracies"][attack] for run in found if run["accuracies"]]
            assert row[place] == (f"{sum(values) / len(values):.1f}" if values else ""), name
        every = set.intersection(*(set(run["failed"]) for run in found))
        always = row[3].split(";")[0] if not row[3].startswith("none") else ""
        assert {check for check in always.split(", ") if check} == every, name


def test_the_plans_for_many_gpus_are_the_recorded_ones() -> None:
    recorded = json.loads((ROOT / "benchmarks/results/scale-cpu.json").read_text())["tables"]
    lines = (ROOT / "docs/cluster.md").read_text().splitlines()
    shown = [line.strip("| ").split(" | ") for line in lines if re.match(r"\| \d+ \| \d+ \|", line)]
    held = [
        [
            *(str(row[name]) for name in ("gpus", "train_devices", "evaluation_devices")),
            *(f"{row[name]:.1f}" for name in ("makespan_hours", "gpu_hours")),
            f"{100 * row['idle_share']:.1f}",
            f"{row['least_hours']:.1f}",
        ]
        for table in recorded
        for row in table["rows"]
    ]
    assert shown == held and len(held) >= 2 * 5


def test_every_command_of_the_program_that_pages_show_exists() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines() if "python -m pipeline " in line]
        for line in lines:
            for part in re.split(r"&&|;", line.split(" #")[0]):
                _, _, arguments = part.partition("python -m pipeline ")
                if arguments:
                    cli.parser().parse_args(shlex.split(arguments))
