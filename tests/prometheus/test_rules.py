"""configs/prometheus.yml and configs/rules: Prometheus takes them, and each alert does what its unit test says."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cluster.lab import program
from tests.prometheus.queries import CONFIGS, names, rules

TESTS = Path(__file__).with_name("alerts.yml")
RULES = rules()
needs_promtool = pytest.mark.skipif(
    program("promtool") is None, reason="needs promtool (Debian: apt-get install prometheus)"
)


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_takes_the_config() -> None:
    promtool("check", "config", str(CONFIGS / "prometheus.yml"))


@needs_promtool
def test_prometheus_takes_it_with_the_lines_for_a_key(tmp_path: Path) -> None:
    text = (CONFIGS / "prometheus.yml").read_text()
    with_key = text.replace("# authorization:", "authorization:")
    assert with_key.count("\n    authorization:") == 1
    assert with_key.count("\n        authorization:") == 1
    (tmp_path / "prometheus.yml").write_text(
        with_key.replace("/etc/prometheus/homeport.key", str(tmp_path / "key"))
    )
    (tmp_path / "key").write_text("secret")
    (tmp_path / "rules").symlink_to(CONFIGS / "rules")
    promtool("check", "config", str(tmp_path / "prometheus.yml"))


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", str(TESTS))


def test_every_alert_has_a_test_that_it_fires_and_one_that_it_does_not() -> None:
    told = [
        alert
        for test in yaml.safe_load(TESTS.read_text())["tests"]
        for alert in test.get("alert_rule_test", [])
    ]
    alerts = {rule.name for rule in RULES if rule.is_alert}
    assert {one["alertname"] for one in told if one["exp_alerts"]} == alerts
    assert {one["alertname"] for one in told if not one["exp_alerts"]} == alerts


def test_a_rule_that_another_asks_for_is_there() -> None:
    recorded = {rule.name for rule in RULES if not rule.is_alert}
    asked = {name for rule in RULES for name in names(rule.expr) if ":" in name}
    assert asked <= recorded
    assert len(recorded) == len([rule for rule in RULES if not rule.is_alert])


def test_names_are_found_wherever_they_stand() -> None:
    expr = 'sum by (le) (rate(homeport_a_total{x="homeport_no"}[5m])) / homeport:b:rate5m > homeport_c'
    assert names(expr) == {"homeport_a_total", "homeport:b:rate5m", "homeport_c"}
