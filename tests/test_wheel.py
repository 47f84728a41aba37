"""The wheel beside code of the user's own that has the same names, in an environment of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.tracking.namespace import PACKAGES, rename_imports
from tests.support.serving import PROJECT

OWN = "WHOSE = 'mine'\n"


@dataclass
class Installed:
    """A virtual environment with the wheel, and a folder with packages of the user's own names."""

    wheel: Path
    bin: Path
    folder: Path

    def run(self, *words: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        own = {
            name: value for name, value in os.environ.items() if not name.startswith(("LUCIDA_", "PYTHON"))
        }
        own |= {"BENTOML_HOME": str(self.folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "true"}
        own["MLFLOW_TRACKING_URI"] = f"sqlite:///{self.folder}/mlflow.db"
        return subprocess.run(
            [self.bin / words[0], *words[1:]], cwd=self.folder, env=own, capture_output=True, text=True,
            timeout=seconds, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", PROJECT, "--no-deps", "--no-build-isolation", "-w", folder]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("*.whl")
    environment, project = folder / "environment", folder / "project"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin/python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    # What the wheel depends on is that of this environment; its editable install is not among it.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    project.mkdir()
    for name in PACKAGES:
        (project / name).mkdir()
        (project / name / "__init__.py").write_text(OWN)
    return Installed(wheel, environment / "bin", project)


def test_the_wheel_holds_one_package_and_nothing_of_the_repository_besides(installed):
    names = zipfile.ZipFile(installed.wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"camera_lucida", "camera_lucida-0.1.0.dist-info"}
    assert {name.split("/")[1] for name in names if name.startswith("camera_lucida/")} == {
        *PACKAGES, "__init__.py", "command.py", "bentofile.yaml"
    }  # fmt: skip
    assert not [name for name in names if "__pycache__" in name]


def test_users_keep_their_own_packages_of_the_same_names(installed):
    script = (
        "import models, service, pipelines\n"
        "import camera_lucida.models as ours\n"
        "from camera_lucida.service.client import Client\n"
        "import sys; assert 'torch' not in sys.modules\n"
        "from camera_lucida.models import Explainer, load_bundle\n"
        "from camera_lucida.pipelines.training.train import train_model\n"
        "assert {models.WHOSE, service.WHOSE, pipelines.WHOSE} == {'mine'}\n"
        "names = ('models', 'service', 'pipelines')\n"
        "loaded = [name for name in sys.modules if name.split('.')[0] in names]\n"
        "assert sorted(loaded) == ['models', 'pipelines', 'service'], loaded\n"
        "print(Explainer.__module__)\n"
    )
    done = installed.run("python", "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "camera_lucida.models.explainer"
    assert "Fine-tune, register, serve" in installed.run("lucida", "--help").stdout


@pytest.mark.soak
def test_the_installed_command_runs_the_demo(installed):
    done = installed.run("lucida", "demo", "--out", "demo", seconds=550)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    for name in ("explained.jpg", "answer.json", "review.html"):
        assert list((installed.folder / "demo").rglob(name)), name


def test_imports_are_renamed_and_nothing_else():
    source = (
        "import models\nfrom models import Explainer\nfrom models.bundle import load_bundle\n"
        "    from service import schemas\nimport modelsmith\nfrom pipelinesque import x\n"
        "x = 'from models import y'\n"
        "from camera_lucida.models import z\n"
    )
    assert rename_imports(source) == (
        "from camera_lucida import models\nfrom camera_lucida.models import Explainer\n"
        "from camera_lucida.models.bundle import load_bundle\n    from camera_lucida.service import schemas\n"
        "import modelsmith\nfrom pipelinesque import x\nx = 'from models import y'\n"
        "from camera_lucida.models import z\n"
    )


def test_no_code_names_a_module_of_ours_in_a_text():
    """It would not be renamed: modules are named by __name__ and __package__."""
    named = [
        f"{path.relative_to(PROJECT)}: {line.strip()}"
        for package in PACKAGES
        for path in (PROJECT / package).rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(rf"""["'](-m )?({"|".join(PACKAGES)})\\.[a-z_]+["'.]""", line)
    ]
    assert named == []
