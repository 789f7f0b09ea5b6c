"""Wrong command lines: one line on stderr, exit status 2, and nothing written."""

import contextlib
import io
import json
import os
import signal
import sys

import numpy as np
import pytest
from PIL import Image

import poise
from poise.cli import COMMANDS, main

EVALUATE = ("evaluate", "--model", "lenet", "--data", "digits", "--out", "OUT")
TRAIN = ("train", "--data", "digits", "--out", "OUT")
REPRODUCE = ("reproduce", "table1", "--out", "OUT")
WRONG = [  # (the command line, words of the answer)
    ((), "name a command"),
    (("evaluat",), "did you mean evaluate?"),
    (("tarin", "--data", "digits"), "did you mean train?"),
    (("xyzzy",), "the commands are"),
    (("--versoin",), "the commands are"),
    (("-x",), "the commands are"),
    (("evaluate",), "needs --model STR, --out PATH, --data STR"),
    (("evaluate", "--model", "lenet", "--data", "digits"), "needs --out PATH"),
    ((*EVALUATE, "--treshold", "0.8"), "did you mean --threshold?"),
    ((*EVALUATE, "--threshhold=0.8"), "did you mean --threshold?"),
    ((*EVALUATE, "--read.sice", "8"), "did you mean --read.size?"),
    ((*EVALUATE, "--zzz"), "has no option --zzz"),
    ((*EVALUATE, "-e", "0.1"), "-e"),
    ((*EVALUATE, "stray"), "stray"),
    ((*EVALUATE, "--threshold", "80"), "threshold must be a number in [0, 1], got 80"),
    ((*EVALUATE, "--threshold", "-0.1"), "threshold must be a number in [0, 1]"),
    ((*EVALUATE, "--threshold", "nan"), "threshold must be a number in [0, 1]"),
    ((*EVALUATE, "--eps", "8"), "8/255"),
    ((*EVALUATE, "--eps", "8/0"), "--eps: a number such as 0.03 or 8/255 is needed, got '8/0'"),
    ((*EVALUATE, "--eps", "8/255/2"), "--eps: a number such as"),
    ((*EVALUATE, "--eps", "0,03"), "--eps: a number such as"),
    ((*EVALUATE, "--eps"), "--eps"),
    ((*EVALUATE, "--eps", "inf"), "eps"),
    ((*EVALUATE, "--step", "-1/255"), "step"),
    ((*EVALUATE, "--eps", "0.1", "--steps", "3", "--eps=0.2"), "--eps is given twice"),
    ((*TRAIN, "--batch-size", "8", "--batch_size", "9"), "--batch-size is given twice"),
    ((*EVALUATE, "--steps", "abc"), "--steps: a whole number is needed, got 'abc'"),
    ((*EVALUATE, "--steps", "2.5"), "--steps: a whole number is needed, got '2.5'"),
    ((*EVALUATE, "--steps", "0"), "steps"),
    ((*EVALUATE, "--keep", "first"), "--keep"),
    ((*EVALUATE, "--norm", "l3", "--attacks", "pgd"), "norm"),
    ((*EVALUATE, "--attacks", "confsmoth"), "did you mean confsmooth"),
    ((*EVALUATE, "--attacks"), "name at least one attack"),
    ((*EVALUATE, "--attacks", "pgd,auto"), "pgd,auto"),
    ((*EVALUATE, "--seed", "-1"), "seed"),
    ((*EVALUATE, "--seed", "99999999999999999999"), "seed"),
    ((*EVALUATE, "--images", "0"), "images"),
    ((*EVALUATE, "--images", "-5"), "images"),
    ((*EVALUATE, "--images", "1e3"), "--images: a whole number is needed"),
    ((*EVALUATE, "--batch-size", "0"), "batch_size"),
    ((*EVALUATE, "--held-out", "10"), "--recalibrate"),
    ((*EVALUATE, "--recalibrate", "temprature"), "--recalibrate"),
    ((*EVALUATE, "--max-hours", "-1"), "max_hours"),
    ((*EVALUATE, "--split", "tset"), "--split"),
    ((*EVALUATE, "--fast", "fp8"), "--fast"),
    ((*EVALUATE, "--read.size", "0"), "size"),
    ((*EVALUATE, "--weights", "nowhere.pt"), "nowhere.pt"),
    (("evaluate", "--model", "lenett", "--data", "digits", "--out", "OUT"), "did you mean lenet"),
    (("evaluate", "--model", "lenet", "--data", "digts", "--out", "OUT"), "did you mean digits"),
    (("evaluate", "--model", "lenet", "--data", "flder:x", "--out", "OUT"), "did you mean folder"),
    (("evaluate", "--model", "~nobody-here/x", "--data", "digits", "--out", "OUT"), "home folder"),
    (("evaluate", "--model", "lenet", "--data", "digits", "--out", "FILE"), "is a file"),
    (("evaluate", "--model", "lenet", "--data", "digits", "--out", "FILE/deeper"), "is a file"),
    (("evaluate", "--model", "lenet", "--data", "digits", "--out", "OUT" + "x" * 300), "cannot be made"),
    ((*TRAIN, "--epochs", "0"), "epochs"),
    ((*TRAIN, "--epoch", "3"), "did you mean --epochs?"),
    ((*TRAIN, "--lr", "0"), "lr"),
    ((*TRAIN, "--lr", "fast"), "--lr: a number such as"),
    ((*TRAIN, "--eps", "8/255"), "'vanilla' does not take --eps"),
    ((*TRAIN, "--defense", "uat_smoth"), "did you mean uat"),
    ((*TRAIN, "--defense", "trades", "--option", "beta"), "NAME=VALUE"),
    ((*TRAIN, "--seed", "-1"), "seed"),
    ((*TRAIN, "--images", "0"), "images"),
    ((*TRAIN, "--devices", "0"), "devices"),
    ((*TRAIN, "--accelerator", "gpuu"), "--accelerator"),
    ((*TRAIN, "--strategy", "fsdp"), "--strategy"),
    ((*TRAIN, "--precision", "16"), "--precision"),
    ((*TRAIN, "--model", "lenett"), "did you mean lenet"),
    ((*TRAIN, "--weights", "nowhere.pt"), "nowhere.pt"),
    ((*TRAIN, "--freeze", "nothing"), "nothing"),
    ((*TRAIN, "--no-decay-norm"), "did you mean --no-decay-norms?"),
    (("train", "--data", "digits", "--out", "FILE"), "is a file"),
    (("reproduce",), "needs TARGET"),
    (("reproduce", "tabel2", "--out", "OUT"), "did you mean table2"),
    ((*REPRODUCE, "--scale", "huge"), "--scale"),
    ((*REPRODUCE, "--jobs", "8/8"), "--jobs"),
    ((*REPRODUCE, "--seeds", "0"), "seeds"),
    ((*REPRODUCE, "--model", "ResNet-50"), "NAME=VALUE"),
    ((*REPRODUCE, "--data", "CIFAR10=digits"), "CIFAR10"),
    ((*REPRODUCE, "--results", "FILE"), "is a file"),
    (("report", "--out", "OUT"), "at least one run folder"),
    (("report", "RUN", "--out", "OUT"), "no run folder"),
    (("report", "RUN", "--threshold", "80", "--out", "OUT"), "threshold must be a number in [0, 1]"),
    (("report", "RUN", "--out", "FILE"), "is a file"),
    (("demo", "--out", "FILE"), "is a file"),
    (("demo", "--out"), "--out"),
    (("list", "attacks"), "attacks"),
    (("download",), "needs DATA"),
    (("download", "mnits", "--root", "OUT"), "did you mean mnist"),
    (("download", "imagenet", "--root", "OUT"), "cannot be downloaded"),
]


def refusal(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert said.err.startswith("poise: ") and said.err.count("\n") == 1 and "Traceback" not in said.out
    return said.err


@pytest.mark.parametrize(("words", "answer"), WRONG, ids=[" ".join(words)[:80] for words, _ in WRONG])
def test_a_wrong_command_line_is_answered_in_one_line_before_any_work(
    words, answer, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")
    error = refusal(capsys, *words)
    assert answer in error and len(error) < 700
    assert "│" not in error and "helptext" not in error
    assert [here.name for here in tmp_path.iterdir()] == ["FILE"]


@pytest.mark.parametrize("width", ["20", "80", "300"])
def test_the_answer_does_not_depend_on_the_terminal(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    assert "needs --model STR, --out PATH, --data STR" in refusal(capsys, "evaluate")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    said = capsys.readouterr()
    assert not stop.value.code and "--help" in said.out and said.err == ""


def test_the_version_is_told(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"poise {poise.__version__}\n"


FRACTIONS = [("8/255", "8/255"), ("3/100", "0.03"), ("1/255", str(1 / 255))]


@pytest.mark.parametrize(("fraction", "decimal"), FRACTIONS[1:])
def test_a_budget_as_a_fraction_is_the_same_defense(fraction, decimal, tmp_path):
    values = []
    for text in (fraction, decimal):
        for flags in (
            ("--eps", text, "--step", text),
            ("--option", f"eps={text}", "--option", f"step={text}"),
        ):
            out = tmp_path / str(len(values))
            words = ("train", "--data", "digits", "--images", "20", "--epochs", "1", "--defense", "at")
            main([*words, *flags[:2], *flags[2:], "--out", str(out)])
            values.append(json.loads((out / "job.json").read_text())["key"])
    assert len(set(values)) == 1


def test_home_is_meant_wherever_a_path_can_begin(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    for split in ("train", "test"):
        for name in ("a", "b"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for n in range(4):
                noise = np.random.default_rng(n).integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(noise).save(folder / f"{n}.png")
    main(["train", "--data", "folder:~/images", "--epochs", "1", "--out=~/run"])
    main(
        ["evaluate", "--model", "~/run", "--data=folder:~/images", "--attacks", "fgsm", "--out", "~/audit"]
    )
    main(["report", "~/audit", "--out", "~/page"])
    assert (tmp_path / "page" / "report.html").exists() and (tmp_path / "run" / "job.json").exists()
    assert "no such" in refusal(capsys, "report", "~/no such", "--out=~/page")


def test_a_closed_pipe_ends_quietly(capsys, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        with pytest.raises(SystemExit) as stop:
            main(["list"])  # and what is left in the stream is no error when it is closed
    assert stop.value.code in (1, 128 + signal.SIGPIPE) and capsys.readouterr().err == ""


def test_letters_that_the_terminal_does_not_have_are_spelt_out(monkeypatch):
    poor = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in poor.items():
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    main(["list"])
    with pytest.raises(SystemExit) as stop:
        main(["report", os.fsdecode(b"caf\xe9 \xce\x94")])
    poor["stderr"].flush()
    out, error = (poor[name].buffer.getvalue() for name in ("stdout", "stderr"))
    assert b"conf" in out
    assert stop.value.code == 2 and error.startswith(b"poise: ") and error.count(b"\n") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_is_one_line(number, code, capsys, monkeypatch):
    monkeypatch.setitem(COMMANDS, "list", lambda: signal.raise_signal(number))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        main(["list"])
    error = capsys.readouterr().err
    assert stop.value.code == code and error.count("\n") == 1 and "the same command goes on" in error
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory\nx")]
)
def test_memory_that_ran_out_names_the_way_out(error, capsys, monkeypatch):
    def fail():
        raise error

    monkeypatch.setitem(COMMANDS, "list", fail)
    assert "--batch-size" in refusal(capsys, "list")


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setitem(COMMANDS, "list", lambda: [][1])
    with pytest.raises(IndexError), contextlib.suppress(SystemExit):
        main(["list"])


def test_brackets_in_names_are_shown(capsys):
    from poise.progress import bars

    with bars() as progress:
        progress("on [new] data", 1, 2, "[b]note[/]")
    printed = capsys.readouterr().out
    assert "on [new] data" in printed and "[b]note[/]" in printed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_commands_options_and_choices(shell, capsys):
    main(["completion", shell])
    script = capsys.readouterr().out
    assert all(word in script for word in (*COMMANDS, "time-limit", "thorough"))
    refused = refusal(capsys, "completion", "csh")
    assert "'bash', 'zsh', 'fish'" in refused


def test_help_is_short_above_and_shows_budgets_as_people_write_them(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    for words, shown, hidden in [
        (["--help"], "same command again resumes", "Several models are compared too"),
        (["audit", "--help"], "(default: 1/255 2/255 4/255 8/255)", "{None}|STR"),
    ]:
        with pytest.raises(SystemExit):
            main(words)
        said = capsys.readouterr().out
        assert shown in said and hidden not in said


def test_the_catalogue_is_there_for_programs(capsys):
    main(["list", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {"kind": "defenses", "name": "uat-smooth", "origin": "poise"}.items() <= next(
        entry for entry in found if entry["name"] == "uat-smooth"
    ).items()
