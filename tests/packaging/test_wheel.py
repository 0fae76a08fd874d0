"""What a user of the wheel gets: the files, the command, the README's ten lines, in an environment that has never seen the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
DATA = {".yaml", ".json", ".js", ".css", ".html", ".typed"}  # what the package reads beside its code


def wanted_files() -> set[str]:
    """Code and data that lie in the source tree, as paths inside a wheel."""
    return {
        str(path.relative_to(SOURCE))
        for path in (SOURCE / "goat_peft").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix in DATA | {".py"}
    }


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a program with few variables of ours; return what it said."""
    keep = {key: os.environ[key] for key in ("HOME", "PATH", "TMPDIR", "LANG") if key in os.environ}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=keep | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def test_every_file_of_data_is_declared() -> None:
    """Without building: setuptools' own reading of pyproject.toml finds every data file of the tree."""
    from setuptools.config.pyprojecttoml import read_configuration

    declared = read_configuration(ROOT / "pyproject.toml")["tool"]["setuptools"]["package-data"]
    found = {
        str(path.relative_to(SOURCE))
        for package, patterns in declared.items()
        for pattern in patterns
        for path in SOURCE.joinpath(*package.split(".")).glob(pattern)
    }
    assert {name for name in wanted_files() if not name.endswith(".py")} <= found
    assert "goat_peft/py.typed" in found
    for kind in (
        r"recipes/shipped/tasks/",
        r"recipes/launch/",
        r"compare/plans/",
        r"judge/prompts\.json",
        r"view/assets/",
    ):
        assert any(re.search(kind, name) for name in found), kind


def test_licence_and_notice_are_declared() -> None:
    from setuptools.config.pyprojecttoml import read_configuration

    project = read_configuration(ROOT / "pyproject.toml")["project"]
    assert project["license"] == "Apache-2.0"
    assert project["license-files"] == ["LICENSE", "NOTICE"]
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "judge/prompts.json" in (ROOT / "NOTICE").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built from it."""
    pytest.importorskip("build", reason="pip install build")
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation: setuptools is here, and no registry is asked for it.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_the_sdist_what_builds_it(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert wanted_files() <= names
    assert {name.split("/")[0] for name in names} == {"goat_peft", wheel.name.split("-py3")[0] + ".dist-info"}
    assert {Path(name).name for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "NOTICE", "README.md", "pyproject.toml"} <= inside
    assert {f"src/{name}" for name in wanted_files()} <= inside


@pytest.mark.slow
def test_the_wheel_works_in_a_fresh_environment(built: Path, tiny_llama_dir: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    home = tmp_path / "fresh"
    venv.create(home, with_pip=False)
    python, goat = home / "bin" / "python", home / "bin" / "goat"
    purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "-q", wheel, cwd=tmp_path
    )
    # Dependencies come from the environment that runs the tests (torch is too large to install again), but not what that
    # environment's own .pth files add, among them this repository.
    environment = {"PYTHONPATH": sysconfig.get_path("purelib")}

    where = run(python, "-c", "import goat_peft; print(goat_peft.__file__)", cwd=tmp_path, **environment).strip()
    assert where.startswith(purelib)
    assert "train" in run(goat, "--help", cwd=tmp_path, **environment)
    assert "commonsense" in run(goat, "recipes", "list", cwd=tmp_path, **environment)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    (tmp_path / "ten.py").write_text(block.replace("HuggingFaceTB/SmolLM2-135M", str(tiny_llama_dir)), encoding="utf-8")
    run(python, "ten.py", cwd=tmp_path, **environment)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
