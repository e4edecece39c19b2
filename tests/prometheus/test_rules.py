"""configs/prometheus.yml and configs/rules: Prometheus takes them, and each alert does what its unit test says."""

import json
import queue
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from tests.cluster.lab import program
from tests.prometheus.queries import CONFIGS, names, rules
from tests.prometheus.server import running, text

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
    (tmp_path / "key").write_text("secret")
    (tmp_path / "rules").symlink_to(CONFIGS / "rules")
    (tmp_path / "prometheus.yml").write_text(text(tmp_path / "key"))
    promtool("check", "config", str(tmp_path / "prometheus.yml"))


@needs_promtool
def test_these_lines_send_it_to_both(tmp_path: Path) -> None:
    asked: queue.Queue[tuple[str, str | None]] = queue.Queue()

    class Router(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.put((path, self.headers["authorization"]))
            here = [{"targets": [self.headers["host"]], "labels": {}}]
            told, kind = (json.dumps(here), "application/json") if path == "/sd" else ("", "text/plain")
            self.send_response(200)
            self.send_header("content-type", kind)
            self.end_headers()
            self.wfile.write(told.encode())

        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "key").write_text("secret\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), Router) as router:
        thread = threading.Thread(target=router.serve_forever)
        thread.start()
        try:
            with running(tmp_path, f"127.0.0.1:{router.server_port}", tmp_path / "key"):
                seen: dict[str, str | None] = {}
                while seen.keys() < {"/sd", "/metrics"}:
                    path, sent = asked.get(timeout=30)
                    seen[path] = sent
        finally:
            router.shutdown()
            thread.join()
    assert seen == {"/sd": "Bearer secret", "/metrics": "Bearer secret"}


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
