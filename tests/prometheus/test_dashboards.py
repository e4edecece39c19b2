"""configs/grafana: what is committed is what the generator writes, and Grafana can take it wherever it is imported."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.grafana import generate
from configs.grafana.panels import COLUMNS, Board
from tests.prometheus.queries import CONFIGS, names, panel_queries, rules

PROVISIONING = CONFIGS / "grafana" / "provisioning"


def committed(board: Board) -> Any:
    return json.loads(generate.file_of(board).read_text())


def test_committed_dashboards_are_what_is_generated(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0
    assert capsys.readouterr().err == ""
    files = {file.name for file in generate.FOLDER.iterdir()}
    assert files == {"cluster.json", "machine.json", "sessions-and-pins.json", "isolation.json"}


def test_a_dashboard_that_differs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    (tmp_path / "machine.json").write_text("{}")
    assert generate.main(["--check"]) == 1
    assert "machine.json is not what is written now" in capsys.readouterr().err


@pytest.mark.parametrize("board", generate.BOARDS, ids=lambda board: board.name)
def test_the_data_source_is_chosen_at_import(board: Board) -> None:
    told = committed(board)
    assert told["templating"]["list"][0]["type"] == "datasource"
    asked = [panel for panel in told["panels"] if panel["type"] != "row"]
    sources = [each["datasource"] for panel in asked for each in (panel, *panel["targets"])]
    assert len(sources) >= 2 * len(asked) > 0
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    assert "id" not in told, "a number that another Grafana may have given to something else"


@pytest.mark.parametrize("board", generate.BOARDS, ids=lambda board: board.name)
def test_panels_fill_the_grid_and_do_not_overlap(board: Board) -> None:
    taken: set[tuple[int, int]] = set()
    panels = committed(board)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= COLUMNS, panel["title"]
        taken |= cells
    assert len(taken) == COLUMNS * (1 + max(y for _, y in taken)), "no holes"


@pytest.mark.parametrize("board", generate.BOARDS, ids=lambda board: board.name)
def test_every_panel_says_what_to_read_from_it(board: Board) -> None:
    titles = [panel.title for panel in board.panels]
    assert len(set(titles)) == len(titles)
    assert all(panel.says.endswith(".") for panel in board.panels)
    used = "".join(query.expr for panel in board.panels for query in panel.queries)
    assert all(f"${variable.name}" in used for variable in board.variables), "a choice that changes nothing"


def test_rules_that_panels_ask_for_are_there() -> None:
    recorded = {rule.name for rule in rules() if not rule.is_alert}
    asked = {name for _, expr in panel_queries() for name in names(expr) if ":" in name}
    assert asked <= recorded


def test_provisioning_agrees_with_prometheus() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    scrapes = yaml.safe_load((CONFIGS / "prometheus.yml").read_text())["global"]
    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == scrapes["scrape_interval"]
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "homeport.yml").read_text())["providers"]
    assert provider["type"] == "file"
