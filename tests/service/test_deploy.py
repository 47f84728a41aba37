"""What is shipped beside the code says the truth about it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from service.metrics import Metrics
from service.settings import Settings

PROJECT = Path(__file__).resolve().parents[2]
DEPLOY = PROJECT / "service/deploy"
RULE_TESTS = """
rule_files: [alerts.yaml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'lucida_drift_alarm{figure="brightness", window="day"}', values: '1x90'}
      - {series: 'lucida_drift_alarm{figure="contrast", window="day"}', values: '0x90'}
      - {series: 'lucida_model{model="wings", version="1", digest="a"}', values: '1x90'}
      - {series: 'lucida_requests_total{route="/explain", status="200"}', values: '0+100x90'}
      - {series: 'lucida_requests_total{route="/explain", status="500"}', values: '0+10x90'}
    alert_rule_test:
      - {eval_time: 30m, alertname: ModelDrift, exp_alerts: []}
      - eval_time: 61m
        alertname: ModelDrift
        exp_alerts:
          - exp_labels: {figure: brightness, severity: warning}
            exp_annotations:
              summary: "brightness of the last day's pictures differs from the model's validation pictures"
              description: "GET /drift has the table; docs/how-to/watch-for-drift.md says how to read it."
      - {eval_time: 61m, alertname: NoModel, exp_alerts: []}
      - eval_time: 61m
        alertname: RequestsFail
        exp_alerts:
          - exp_labels: {severity: critical}
            exp_annotations: {summary: "9.091% of the requests fail"}
"""


def pins() -> dict[str, str]:
    lines = (DEPLOY / "requirements.txt").read_text().splitlines()
    return {name: rest.split(";")[0].strip() for name, rest in (line.split("==", 1) for line in lines)}


def test_the_pins_are_exact_complete_and_those_of_the_tests():
    found = pins()
    for name in ("torch", "torchvision", "captum", "bentoml", "pillow", "starlette", "safetensors"):
        assert found[name] == version(name).split("+")[0]
    assert not {"mlflow", "ray", "matplotlib-inline", "fastapi"} & set(found)
    assert not [name for name in found if name.startswith("nvidia")]


def test_the_service_imports_nothing_that_is_not_pinned():
    """Every distribution whose modules a worker has loaded is in the list."""
    code = """
import sys, service.app, service.api.routes, service.api.reads
import service.api.jobs, service.jobs.worker, service.metrics
service.metrics.get_metrics()
from importlib.metadata import packages_distributions
known = packages_distributions()
for module in {name.split('.')[0] for name in sys.modules}:
    print(*known.get(module, ()))
"""
    environment = {"LUCIDA_BUNDLE": "/nowhere", "PATH": "/usr/bin:/bin", "HOME": "/tmp"}
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True, env=environment
    ).stdout
    known = {name.lower().replace("_", "-") for name in pins()} | {"camera-lucida", "setuptools", "pip"}
    # Several distributions may share a module's first name; one that is pinned will do. requests takes
    # cryptography and brotli where they are there, torch pydot, Pillow defusedxml.
    owners = [set(line.lower().replace("_", "-").split()) for line in printed.splitlines() if line.strip()]
    optional = ("cryptography", "cuda-", "nvidia-", "triton", "pydot", "brotli", "defusedxml")
    left = [found for found in owners if not found & known and not min(found).startswith(optional)]
    assert left == []


def test_the_dashboard_and_the_alerts_ask_for_figures_that_exist(start, complete_folder, bee):
    served = start(complete_folder)
    served.ask("/explain", bee)
    figures = served.get("/metrics").text
    names = set(re.findall(r"^# TYPE (lucida_\w+)", figures, flags=re.MULTILINE))
    rules = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"][0]["rules"]
    asked = {name for rule in rules for name in re.findall(r"lucida_\w+", rule["expr"])}
    for panel in json.loads((DEPLOY / "grafana.json").read_text())["panels"]:
        for target in panel["targets"]:
            asked |= set(re.findall(r"lucida_\w+", target["expr"]))
    for name in asked:
        base = re.sub(r"_(bucket|sum|count|total)$", "", name)
        assert {name, base, f"{base}_total"} & names, name
    assert len(asked) >= 10


def test_prometheus_takes_the_configuration_and_the_rules(tmp_path):
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool: apt-get install prometheus")
    for name in ("prometheus.yaml", "alerts.yaml"):
        shutil.copy(DEPLOY / name, tmp_path / name)
    for kind, name in (("rules", "alerts.yaml"), ("config", "prometheus.yaml")):
        done = subprocess.run(
            ["promtool", "check", kind, tmp_path / name], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "tests.yaml").write_text(RULE_TESTS)
    done = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "tests.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_explanations_are_counted_by_what_they_show(service, bee):
    def figure(name: str) -> float:
        lines = [line for line in service.get("/metrics").text.splitlines() if line.startswith(name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    names = (
        'lucida_explanations_total{method="grad_cam",status="ok"}', "lucida_map_concentration_count",
        "lucida_border_mass_count", "lucida_score_count", "lucida_batch_size_count",
        'lucida_requests_total{route="/explain",status="200"}',
        'lucida_request_seconds_count{route="/explain"}',
    )  # fmt: skip
    before = [figure(name) for name in names]
    for _ in range(3):
        service.ask("/explain", bee)
    after = [figure(name) for name in names]
    assert all(later - earlier >= 3 for earlier, later in zip(before, after, strict=True)), (before, after)
    assert isinstance(Metrics.__doc__, str)


def test_the_compose_file_holds_together():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"lucida", "mlflow", "postgres", "prometheus"}
    for name, service in services.items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source.startswith(("./", "${")) or source in compose["volumes"], volume
            if source.startswith("./"):
                assert (DEPLOY / source).is_file()
        for other in service.get("depends_on", ()):
            assert other in services
    build = services["lucida"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    scraped = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())["scrape_configs"][0]
    assert scraped["static_configs"][0]["targets"] == ["lucida:3000"]
    known = {f"LUCIDA_{name.upper()}" for name in Settings.model_fields}
    assert {name for name in services["lucida"]["environment"] if name.startswith("LUCIDA")} <= known


def test_the_containerfile_copies_what_is_there_and_sets_what_is_known():
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    for line in lines:
        if line.startswith("COPY"):
            assert (PROJECT / line.split()[1]).exists(), line
    known = {f"LUCIDA_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"LUCIDA_\w+", "\n".join(lines))) <= known
    assert lines.index("USER lucida") < next(n for n, line in enumerate(lines) if line.startswith("CMD"))


def test_the_how_tos_speak_of_settings_that_exist():
    known = {f"LUCIDA_{name.upper()}" for name in Settings.model_fields} | {"LUCIDA_MODEL"}
    for path in (PROJECT / "docs/how-to").glob("deploy-*.md"):
        assert set(re.findall(r"LUCIDA_[A-Z_]+", path.read_text())) <= known, path.name
