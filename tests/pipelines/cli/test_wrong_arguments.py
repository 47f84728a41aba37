"""Wrong values of every argument of every command: a sentence, no traceback, and before the work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import typer

from pipelines.cli import app as cli
from tests.support.serving import PROJECT

WORDS = ["", " ", "-1", "0", "99999999999999999999", "nan", "no/such/place", "../nothing/there", "a\nb",
         "\u202e", "é" * 300, "[red]", "%s", "models:/", "x@y@z", "@", "/", "=", "a=b",
         "http://127.0.0.1:1/x"]  # fmt: skip
SHARES = int(os.environ.get("LUCIDA_ODD_SHARES", "3"))
FEW = ["", "-1", "é" * 300, "BYTES"]
COMMANDS: dict[str, click.Command] = typer.main.get_command(cli.app).commands
# Any new folder is right for it, and its work takes minutes.
del COMMANDS["demo"]
SMALL = {"specimens": ["--train=1", "--val=1", "--test=1"]}


def arguments(command: click.Command) -> list[click.Parameter]:
    return [parameter for parameter in command.params if parameter.name != "help"]


def required(command: click.Command, places: dict[str, str], leave_out: click.Parameter) -> list[str]:
    """Values for what the command must have besides one parameter: they exist, and are cheap to refuse."""
    words = [*SMALL.get(command.name, [])]
    for parameter in arguments(command):
        if parameter is leave_out:
            continue
        if parameter.param_type_name == "argument" and parameter.required:
            words.append(places["FILE"])
        elif parameter.required:
            words += [parameter.opts[0], places["FOLDER"]]
    names = {parameter.name for parameter in arguments(command)}
    if "data" in names and leave_out.name != "data":
        words += ["--data", places["FOLDER"]]
    if {"model", "bundle"} <= names and leave_out.name not in {"model", "bundle"}:
        words += ["--bundle", places["FOLDER"]]
    return words


@pytest.fixture
def places(in_tmp: Path) -> dict[str, str]:
    """A folder with nothing in it, a text file, and a file of bytes that are no text."""
    (in_tmp / "folder").mkdir()
    (in_tmp / "file.txt").write_text("{not json, not toml")
    (in_tmp / "bytes.bin").write_bytes(bytes(range(256)) * 20)
    return {
        "FOLDER": str(in_tmp / "folder"),
        "FILE": str(in_tmp / "file.txt"),
        "BYTES": str(in_tmp / "bytes.bin"),
    }


@pytest.fixture
def run(monkeypatch, capfd) -> Iterator[Callable[..., tuple[int, str]]]:
    """Run ``lucida WORDS`` in this process; the exit code and all that was printed."""
    handlers = {number: cli.signal.getsignal(number) for number in (cli.signal.SIGINT, cli.signal.SIGTERM)}

    def run_words(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lucida", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capfd.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    yield run_words
    for number, handler in handlers.items():
        cli.signal.signal(number, handler)


def check_each_parameter(
    name: str, values: list[str], places: dict[str, str], run, *, shares: int = 1
) -> None:
    """Give each parameter every value; of several shares the next one to each parameter after the other."""
    command = COMMANDS[name]
    for number, parameter in enumerate(arguments(command)):
        for value in values[number % shares :: shares]:
            word = places.get(value, value)
            others = required(command, places, parameter)
            if parameter.param_type_name == "argument":
                words = [name, *others, "--", word]
            elif getattr(parameter, "is_flag", False):
                words = [name, *others, parameter.opts[0]]
            else:
                words = [name, *others, f"{parameter.opts[0]}={word}"]
            code, printed = run(*words)
            assert "Traceback" not in printed, words
            assert "fault of lucida" not in printed, (words, printed)
            assert code in {0, 1, 2}, (words, code, printed)
            assert code == 0 or len(printed.strip()) > 10, f"{words}: no reason was given"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_wrong_value_of_any_argument_is_answered_in_a_sentence(name, places, run):
    check_each_parameter(name, FEW, places, run)


@pytest.mark.soak
@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_any_odd_value_of_any_argument_is_answered_in_a_sentence(name, places, run):
    check_each_parameter(name, [*WORDS, "FOLDER", "FILE"], places, run, shares=SHARES)


def test_the_demo_does_not_begin_where_its_folder_is_a_file(places, run):
    assert run("demo", "--out", places["FILE"])[0] == 1


@pytest.mark.parametrize("address", ["localhost:5000", "mlflow", "./mlruns", "127.0.0.1", "http//host"])
def test_an_address_without_a_scheme_is_named_with_the_choices(address, run, in_tmp, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    mlflow.set_tracking_uri(address)
    code, printed = run("promote", "wings")
    assert code == 1
    assert address in printed
    assert "http://HOST:PORT" in printed


def test_an_answer_that_is_no_json_is_refused(places, run, bundle_folder):
    for kind in ("FILE", "BYTES"):
        code, printed = run("verify", places[kind], "--image", places["FILE"], "--bundle", str(bundle_folder))
        assert code == 1
        assert "The answer is not JSON" in printed


@pytest.mark.soak
def test_a_reader_that_goes_away_is_no_fault(in_tmp):
    """As `lucida --help | head -1` does, with an output that no pipe holds."""
    command = [
        sys.executable,
        "-c",
        "from pipelines.cli.app import main; main()",
        "specimens",
        "drawn",
        "--train",
        "1",
    ]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(
        command, cwd=in_tmp, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    errors = process.stderr.read()
    assert "Traceback" not in errors
    assert "fault of lucida" not in errors
    process.wait(60)


def test_a_fault_of_ours_is_a_sentence_and_its_traceback_a_file(run, monkeypatch, tmp_path):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("planted\nfault")

    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("pipelines.training.feature_cache.cache_size", fail)
    code, printed = run("cache")
    assert code == 70
    assert "fault of lucida (RuntimeError: planted fault)" in printed
    (file,) = tmp_path.glob("lucida-*.txt")
    assert "Traceback" in file.read_text()
    assert str(file) in printed.replace(os.linesep, "")
