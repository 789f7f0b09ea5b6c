"""The command line, as a person meets it: in its own process, or by main() where that tells as much."""

import html
import json
import subprocess
import sys

import pytest
import torch

from poise import data, recalibration, training
from poise.cli import main
from poise.report import read


def run(*args):
    return subprocess.run([sys.executable, "-m", "poise", *args], capture_output=True, text=True)


def refused(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run with space and ü"
    main(["train", "--data", "digits", "--epochs", "2", "--lr", "0.05", "--out", str(out)])
    return out


@pytest.mark.parametrize("code", ["import poise", "import poise.cli"])
def test_torch_is_imported_only_when_needed(code):
    script = f"import sys; {code}; print(sorted({{'torch', 'matplotlib', 'polars'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_every_command_and_does_not_import_torch():
    script = (
        "import sys; from poise.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for command in ("demo", "train", "evaluate", "report", "list", "download"):
        assert command in done.stdout
    assert done.stdout.strip().endswith("False")


def test_list_names_every_entry(capsys):
    from poise.cli.catalogue import catalogue

    main(["list"])
    printed = capsys.readouterr().out
    entries = list(catalogue())
    assert {"attacks", "defenses", "models", "data", "metrics"} <= {entry.kind for entry in entries}
    for _, name, text, _ in entries:
        assert name in printed
        assert text.endswith("."), f"{name} has no sentence that says what it is"


def test_evaluate_resumes_extends_and_reports(trained, tmp_path, capsys):
    out = tmp_path / "audit"
    flags = ["--model", trained, "--data", "digits", "--images", "50", "--eps", "0.1", "--steps", "3"]
    command = ["evaluate", *map(str, flags), "--out", str(out), "--attacks"]
    main([*command, "pgd"])
    written = (out / "pgd" / "records.parquet").stat().st_mtime_ns
    main([*command, "pgd", "ConfSmooth"])
    assert (out / "pgd" / "records.parquet").stat().st_mtime_ns == written
    assert (out / "report.html").exists() and (out / "report.md").exists()
    printed = capsys.readouterr().out
    assert "confsmooth" in printed and "pgd" in printed
    assert json.loads((out / "job.json").read_text())["job"]["images"] == 50


PLANNED = ["--data", "digits", "--images", "50", "--steps", "3", "--attacks", "pgd", "confsmooth"]


def test_the_plan_is_printed_before_the_attacks(trained, tmp_path, capsys):
    main(["evaluate", "--model", str(trained), *PLANNED, "--out", str(tmp_path), "--max-hours", "1"])
    printed = capsys.readouterr().out
    first, *rest = printed.splitlines()
    assert first == "50 images x pgd, confsmooth: each is timed on a few images first"
    assert rest[0].startswith("pgd: about") and "6 forwards and 3 backwards an image" in rest[0]
    assert rest[1].startswith("confsmooth: about") and rest[2].startswith("50 images x 2 attacks: about")


def test_what_would_take_too_long_is_refused_where_nobody_can_be_asked(trained, tmp_path, capsys):
    flags = ("evaluate", "--model", trained, *PLANNED, "--out", tmp_path / "out")
    main([str(flag) for flag in flags if flag != "confsmooth"])
    capsys.readouterr()
    error = refused(capsys, *flags, "--max-hours", 0)
    assert error.startswith("poise: 50 images x 1 attack would take about") and error.count("\n") == 1
    assert "--max-hours is 0: take fewer --images" in error
    assert [part.name for part in read(tmp_path / "out").attacked] == ["pgd"]  # what was done stays done
    main([str(flag) for flag in (*flags, "--max-hours", 1)])
    assert [part.name for part in read(tmp_path / "out").attacked] == ["pgd", "confsmooth"]


@pytest.mark.parametrize(("answer", "goes_on"), [("y", True), (" Yes ", True), ("", False), ("n", False)])
def test_on_a_terminal_it_is_asked(answer, goes_on, trained, tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", lambda prompt: asked.append(prompt) or answer)
    flags = ("evaluate", "--model", trained, *PLANNED, "--out", tmp_path / "out", "--max-hours", 0)
    if goes_on:
        main([str(flag) for flag in flags])
    else:
        assert "--max-hours" in refused(capsys, *flags)
    assert len(asked) == 1 and asked[0].endswith("go on? [y/N] ")
    assert bool(list((tmp_path / "out").rglob("records.parquet"))) == goes_on


def test_no_bar_is_drawn_before_there_is_something_to_show(capsys):
    from poise.progress import bars

    with bars():
        assert capsys.readouterr().out == ""
    assert capsys.readouterr().out == ""
    with bars() as progress:
        progress("task", 3, 8)
    assert "3/8" in capsys.readouterr().out


def test_recalibrate_then_attack_again_is_one_command(trained, tmp_path):
    out = tmp_path / "out"
    flags = ["--recalibrate", "temperature", "--held-out", "160", "--steps", "3", "--attacks", "confsmooth"]
    main(["evaluate", "--model", str(trained), "--data", "digits", *flags, "--out", str(out)])
    cooled = read(out).attacked[0].records
    job = json.loads((out / "job.json").read_text())["job"]
    assert (job["recalibration"], job["images"]) == ("temperature", 200)
    assert "lenet vanilla temperature on digits" in (out / "report.md").read_text()
    held, rest = data.load("digits").divide(160)
    net = training.load(trained)
    k = recalibration.temperature(*recalibration.logits_of(net, held)).k
    expected = (k * recalibration.logits_of(net, rest)[0].double()).softmax(dim=1)
    assert abs(float(k) - 1) > 0.01
    assert torch.allclose(cooled.clean.double(), expected, atol=1e-6)


def test_the_fast_path_keeps_every_label_and_says_so_in_the_configuration(trained, tmp_path):
    results = {}
    for path in (None, "bf16"):
        out = tmp_path / str(path)
        flags = ["--images", "60", "--eps", "0.1", "--attacks", "confsmooth", "pgd_bisect"]
        command = ["evaluate", "--model", str(trained), "--data", "digits", *flags, "--out", str(out)]
        main([*command, *(["--fast", path] if path else [])])
        results[path] = {part.name: part for part in read(out).attacked}
    quick = results["bf16"]
    assert quick["confsmooth"].attack.startswith("Fast(") and "bf16" in quick["confsmooth"].attack
    assert "float32" in quick["pgd_bisect"].attack
    for name, part in quick.items():
        assert part.records.kept.all() and (part.records.linf <= 0.1 + 1e-6).all()
        plain = results[None][name].records
        off = part.records.attacked.amax(dim=1) - plain.attacked.amax(dim=1)
        assert off.mean() < 0.01


@pytest.fixture(scope="module")
def steep(trained, tmp_path_factory):
    """Weights whose softmax saturates: the gap's gradient is 0 in float32."""
    net = training.load(trained)
    with torch.no_grad():
        net[-1].weight.mul_(1e5)
    weights = tmp_path_factory.mktemp("steep") / "steep.pt"
    torch.save(net.state_dict(), weights)
    return ["--model", "lenet", "--weights", str(weights), "--data", "digits", "--images", "40"]


def test_findings_of_an_earlier_attack_stay_when_another_joins(steep, tmp_path):
    main(["evaluate", *steep, "--attacks", "adaptive", "--out", str(tmp_path / "out")])
    first = json.loads((tmp_path / "out" / "job.json").read_text())["findings"]
    main(["evaluate", *steep, "--attacks", "confsmooth", "--out", str(tmp_path / "out")])
    both = json.loads((tmp_path / "out" / "job.json").read_text())["findings"]
    first = [found for found in first if found["attack"]]
    assert first and [found for found in both if found["attack"] == "adaptive"] == first


def test_diagnostics_are_printed_reported_and_kept(steep, tmp_path, capsys):
    out = tmp_path / "out"
    main(["evaluate", *steep, "--attacks", "adaptive", "confsmooth", "--out", str(out)])
    findings = json.loads((out / "job.json").read_text())["findings"]
    seen = {(found["kind"], found["attack"]) for found in findings}
    assert ("vanished-gradient", "adaptive") in seen
    assert ("vanished-gradient", "confsmooth") not in seen
    advice = next(found["advice"] for found in findings if found["kind"] == "vanished-gradient")
    assert advice in capsys.readouterr().out
    assert html.escape(advice, quote=True).replace("&#x27;", "&#39;") in (out / "report.html").read_text()


def test_an_option_that_the_defense_does_not_take_is_refused_with_those_it_does(tmp_path, capsys):
    flags = ("--data", "digits", "--defense", "trades", "--option", "lambda=3", "--out", tmp_path / "out")
    assert "unknown option 'lambda=3': give NAME=VALUE, of eps=" in refused(capsys, "train", *flags)
    main(
        [
            "train",
            *map(str, flags[:-3]),
            "beta=3",
            "--epochs",
            "1",
            "--images",
            "20",
            "--out",
            str(flags[-1]),
        ]
    )
    assert "beta=3," in json.loads((tmp_path / "out" / "job.json").read_text())["job"]["defense_value"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--eps", 0.1), ("'vanilla' does not take --eps", "no options")),
        (("--defense", "sam", "--step", 0.1, "--steps", 3), ("--step and --steps", "it takes rho=")),
        (("--defense", "uat-gap-unprojected", "--eps", 0.1), ("does not take --eps", "step=", "steps=10")),
        (("--defense", "at", "--steps", 0), ("steps must be a whole number of at least 1, got 0",)),
        (("--defense", "trades", "--option", "steps=0"), ("steps must be a whole number of at least 1",)),
    ],
)
def test_a_defense_is_trained_as_asked_or_not_at_all(flags, words, tmp_path, capsys):
    out = tmp_path / "out"
    error = refused(
        capsys, "train", "--data", "digits", "--images", 20, "--epochs", 1, *flags, "--out", out
    )
    for word in words:
        assert word in error
    assert error.count("\n") == 1 and not out.exists()


def test_recalibration_needs_images_to_spare(trained, tmp_path, capsys):
    flags = ("--model", trained, "--data", "digits", "--recalibrate", "temperature", "--held-out", "360")
    message = refused(capsys, "evaluate", *flags, "--out", tmp_path / "out")
    assert "held_out must be a whole number of at most 359, got 360" in message


def test_another_configuration_in_the_same_folder_is_refused(trained, tmp_path, capsys):
    out = tmp_path / "audit"
    flags = ("--model", trained, "--data", "digits", "--images", 20, "--steps", 2, "--attacks", "pgd")
    main([str(arg) for arg in ("evaluate", *flags, "--out", out)])
    error = refused(capsys, "evaluate", *flags, "--eps", 0.2, "--out", out)
    assert "another configuration" in error and "0.2" in error and "--out" in error
    error = refused(capsys, "train", "--data", "digits", "--epochs", 3, "--lr", 0.05, "--out", trained)
    assert "epochs: 2 there, 3 now" in error


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--model", "lenett", "--data", "digits"), ("lenett", "did you mean lenet")),
        (("--model", "lenet", "--data", "digits"), ("without weights", "poise train", "--weights")),
        (("--model", "lenet", "--data", "digit"), ("digit", "did you mean digits")),
        (("--model", "lenet", "--data", "mnist"), ("MNIST/raw", "poise download mnist")),
        (("--model", "lenet", "--data", "digits", "--attacks", "confsmoth"), ("did you mean confsmooth",)),
        (("--model", "lenet", "--data", "digits", "--eps", 8), ("eps", "[0, 1]", "8/255")),
        (("--model", "lenet", "--data", "digits", "--images", 9999), ("at most 360",)),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(args, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = refused(capsys, "evaluate", *args, "--out", tmp_path / "out")
    assert error.startswith("poise: ") and error.count("\n") == 1
    for word in words:
        assert word in error
    assert not (tmp_path / "out").exists()


def test_data_that_does_not_fit_the_run_is_refused(trained, tmp_path, capsys, mnist_root):
    flags = ("--model", trained, "--data", "mnist", "--root", mnist_root, "--out", tmp_path / "out")
    assert "takes [1, 8, 8] images" in refused(capsys, "evaluate", *flags)


def test_a_training_run_is_no_audit(trained, tmp_path, capsys):
    error = refused(capsys, "report", trained, "--out", tmp_path / "report")
    assert "poise evaluate --model" in error
    assert "no job.json" in refused(capsys, "report", tmp_path / "none", "--out", tmp_path / "report")
    assert "at least one" in refused(capsys, "report")


def test_the_module_runs_as_a_program():
    done = run("reprot")
    assert done.returncode == 2 and done.stderr.startswith("poise: ") and "Traceback" not in done.stderr
