"""The audit's page, read as its readers read it: by eye, by ear, on paper, by a machine, by an attacker."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import audit_pages
import poise
from poise import InputError
from poise.auditing import page, suite
from poise.auditing.affected import most_affected, name_of
from poise.auditing.answers import Answer, Evidence, Seen, worst
from poise.auditing.outcome import Audit
from poise.auditing.pairs import Pair
from poise.data import ImageSet
from poise.metrics import intervals
from poise.metrics.intervals import Number, share
from poise.report import drawings

EPS = audit_pages.EPS
VOID = {"meta", "link", "br", "img"}


class Read(HTMLParser):
    """Tags in order with their attributes and the text within them; unbalanced ones are refused."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append((self.open[-1] if self.open else "", data))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(words for tag, words in self.words if tag != "style"))


@pytest.fixture(scope="module", autouse=True)
def _few_draws():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "RESAMPLES", 60)
        yield


@pytest.fixture(scope="module")
def one() -> Audit:
    return audit_pages.audit(n=80)


@pytest.fixture(scope="module")
def several() -> Audit:
    return audit_pages.audit(audit_pages.NASTY, n=40, classes=("<b>a</b>", "b" * 200, "ورم"))


@pytest.fixture(scope="module")
def text(one: Audit) -> str:
    return page.html(audit_pages.with_pictures(one))


@pytest.fixture(scope="module")
def nasty(several: Audit) -> str:
    files = "<img src=x onerror=alert(1)>{}" + "f" * 200
    return page.html(audit_pages.with_pictures(several, shape=(3, 8, 8), files=files))


@pytest.mark.parametrize("which", ["text", "nasty"])
def test_it_is_well_formed_and_every_reference_has_its_target(which, request):
    read = Read(request.getfixturevalue(which))
    ids = Counter(of["id"] for _, of in read.tags if "id" in of)
    assert max(ids.values()) == 1
    targets = [of["href"][1:] for of in read.of("a")]
    targets += [name for _, of in read.tags for name in (of.get("aria-labelledby") or "").split()]
    assert len(targets) > 5 and set(targets) <= set(ids)
    assert read.of("html")[0]["lang"] == "en" and len(read.of("h1")) == 1


@pytest.mark.parametrize("which", ["text", "nasty"])
def test_nothing_comes_from_elsewhere_and_nothing_runs(which, request):
    text = request.getfixturevalue(which)
    read = Read(text)
    assert not read.of("script") and not read.of("iframe") and "@import" not in text
    assert not re.search(r"https?:|//[a-z]", re.sub(r"data:[^\"]*", "", text))
    assert not [name for _, of in read.tags for name in of if name.startswith("on")]
    assert set(re.findall(r"url\(([^)]*)\)", text)) == {"#hatch"}
    assert all(of["src"].startswith("data:image/png;base64,") for of in read.of("img"))
    policy = next(of["content"] for of in read.of("meta") if "http-equiv" in of)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_names_survive_whatever_they_are(nasty, several):
    read = Read(nasty)
    nasty.encode()  # no half of a letter is left
    for model, name in zip(several.models, (*audit_pages.NASTY[:3], "caf\\udce9 | $x$"), strict=True):
        assert name in read.text, model.name
    assert "<b>a</b>" in read.text and "ورم" in read.text and "<img src=x onerror=alert(1)>" in read.text
    assert not read.of("b")


def test_the_first_screen_has_the_verdict_three_numbers_and_what_was_tested(text, one):
    head = Read(re.search(r"<header.*</header>", text, re.DOTALL)[0]).text
    kept = one.models[0].number("trusted_kept", EPS[-1])
    assert f"{kept.count} of {kept.n} right answers that were trusted before the change" in head
    for question in ("trusted_kept", "needless", "missed"):
        number = one.models[0].number(question, EPS[-1])
        shown = f"{100 * number.estimate:.0f} % range {100 * number.low:.0f}–{100 * number.high:.0f} %"
        assert shown in head, question
    for fact in (
        "80 images",
        "n = 80",
        "at most 8 of 255 grey levels",
        "ε = 8/255",
        "70 %",
        "threshold 0.7",
    ):
        assert fact in head
    assert not re.search(r"ECE|logit|softmax|L∞|adversarial|perturb", head)
    assert '@bottom-left { font: 8pt sans-serif; content: "n = 80, each pixel changed by at most 8' in text


def test_every_picture_says_its_numbers(text, one):
    read = Read(text)
    pictures = [of for of in read.of("svg") if of.get("aria-hidden") != "true"]
    told = [
        words.replace("\N{NO-BREAK SPACE}", " ") for words in re.findall(r"<desc[^>]*>(.*?)</desc>", text)
    ]
    assert len(told) == len(pictures) == 6 and all(of["role"] == "img" for of in pictures)
    for eps in EPS:
        assert intervals.tell_count(one.models[0].number("trusted_kept", eps)) in told[0]
        assert intervals.tell_count(one.models[0].number("confidence_in_noise", eps)) in told[1]
    counts = [int(n) for n in re.findall(r"(?:right|wrong) (\d+)", told[2])]
    assert sum(counts) == 80
    assert len(read.of("img")) == 30 and all(re.search(r"\d", of["alt"]) for of in read.of("img"))
    assert "scan_" in read.of("img")[0]["alt"]


def test_every_table_names_its_columns_and_can_be_reached_by_keyboard(text, nasty):
    for whole in (text, nasty):
        read = Read(whole)
        assert all(of.get("scope") in ("col", "row") for of in read.of("th"))
        for of in (of for _, of in read.tags if "wide" in (of.get("class") or "").split()):
            assert of["tabindex"] == "0" and of["aria-label"]


def _luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def _contrast(first: str, second: str) -> float:
    low, high = sorted(map(_luminance, (first, second)))
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_read_by_day_and_by_night(text):
    schemes = [
        dict(re.findall(r"--([\w-]+): (#\w{6});", part)) for part in re.findall(r":root \{([^}]*)", text)
    ]
    assert len(schemes) == 2 and schemes[0].keys() == schemes[1].keys()
    for colors in schemes:
        for ground in ("paper", "wash"):
            for ink in ("ink", "soft", "strong", "beside", "third"):
                assert _contrast(colors[ink], colors[ground]) >= 4.5, (ink, ground)
            for fill in ("fill", "fill-wrong", "focus"):
                assert _contrast(colors[fill], colors[ground]) >= 3, (fill, ground)


def test_a_change_keeps_its_sign_in_greys():
    clean = np.full((2, 1, 5), 0.5)
    attacked = clean + np.array([[[-0.2, -0.1, 0, 0.1, 0.2]], [[0] * 5]])  # the one that changes is shown
    uri, largest = drawings.change(clean, attacked, limit=10_000)
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("L"))[0]
    assert largest == pytest.approx(0.2) and (np.diff(grey.astype(int)) > 20).all() and grey[2] == 150


def test_pictures_are_exact_where_there_is_room_and_smaller_where_there_is_none(one, monkeypatch):
    noise = np.random.default_rng(0).random((3, 40, 40))
    uri, exact = drawings.picture(noise, limit=10_000)
    back = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    assert exact and np.array_equal(back, np.rint(noise * 255).transpose(1, 2, 0))
    monkeypatch.setattr(page, "ROOM", 90_000)
    (model,) = audit_pages.with_pictures(one).models
    loud = [replace(of, clean=noise, attacked=1 - noise) for of in model.affected]
    found = page.html(replace(one, models=[replace(model, affected=loud)]))
    assert sum(len(of["src"]) for of in Read(found).of("img")) <= 90_000
    assert found.count("shown smaller than it is") == 10


def test_a_page_that_is_too_large_is_refused(one, monkeypatch):
    monkeypatch.setattr(page, "LIMIT", 20_000)
    with pytest.raises(InputError, match=r"a page of 1 models takes .* more than 0.02: audit fewer models"):
        page.html(one)


def _of(answers: list[Answer], *, threshold: float = 0.7, **options) -> Audit:
    """An audit of these numbers alone."""
    whole = audit_pages.small()
    models = [replace(whole.models[0], found=answers, recalibrated=(), **options)]
    return replace(whole, models=models, threshold=threshold)


@pytest.mark.parametrize(
    ("kept", "of", "word"),
    [
        (200, 200, "holds."),
        (195, 200, "holds only in part."),  # 97.5 %, 94.3–98.9 %
        (110, 200, "holds only in part."),  # 55 %, 48–62 %
        (80, 200, "does not hold."),  # 40 %, 33–47 %
        (4, 10, "holds only in part."),  # 40 %, 17–69 %
        (0, 0, "not trusted even before any change."),
    ],
)
def test_the_first_line_follows_the_range(kept, of, word):
    answers = [Answer("trusted_kept", EPS[-1], "", share([True] * kept + [False] * (of - kept)))]
    assert page.opening(_of(answers))[0].endswith(word)


def test_a_threshold_that_refers_nothing_is_no_success():
    answers = [Answer("trusted_kept", EPS[-1], "", share([True] * 200))]
    audit = _of(answers, threshold=0.5)
    assert page.opening(audit)[0] == "A threshold of 50 % says nothing here."
    assert audit.verdict.startswith(
        "With 2 classes no confidence is below 1/2: this threshold says nothing."
    )
    assert "says nothing" not in _of(answers, threshold=0.51).verdict


def test_what_was_not_tried_is_said():
    before = Answer("missed", 0.0, "", share([True, False]))
    assert page.headline_numbers(audit := _of([before]), audit.models[0])[2].told == (
        "Not tried under changes; before them 1 of 2."
    )
    assert (
        page.headline_numbers(audit := _of([]), audit.models[0])[2].told
        == "No answer was wrong, so that none could be."
    )


def test_what_is_proved_stands_below_what_was_found():
    whole = audit_pages.small()
    numbers = {0.0: share([True] * 4), EPS[-1]: share([True, False, False, False])}
    answers = [
        Answer("trusted_kept", 0.0, "", numbers[0.0]),
        Answer("trusted_certified", EPS[-1], "", numbers[EPS[-1]]),
    ]
    evidence = replace(whole.models[0].evidence, certified={EPS[-1]: np.zeros(6)})
    audit = replace(whole, models=[replace(whole.models[0], found=answers, evidence=evidence)])
    drawn, confidence = page.model_curves(audit.models[0])
    assert drawn.table.heading[-1] == "proved" and "proved" not in confidence.table.heading
    assert drawn.table.lines[0][-1] == "4 of 4, 100 % (51–100 %)"
    assert drawn.table.lines[-1][-1] == "1 of 4, 25 % (5–70 %)"
    assert "Proved is what no change" in Read(page.html(audit)).text


def test_budgets_of_loss_say_where_they_end():
    answers = [
        Answer("eps_lost_5", 0.0, "", Number(2 / 255, EPS[0], 3 / 255, 9)),
        Answer("eps_lost_50", 0.0, "", Number(EPS[-1], EPS[-1], EPS[-1], 9)),
    ]
    assert page.tell_loss(_of(answers).models[0]) == [
        "5 % of the trusted answers are lost at 2 of 255 grey levels (range 1 or less to 3).",
        "50 % of the trusted answers are lost at 8 or more of 255 grey levels, the end of what was tried.",
    ]


def _pair(first: str, second: str, low: float, high: float, grounds: str = "raw") -> Pair:
    half = share([True, False])
    return Pair(first, second, grounds, EPS[-1], (half, half), Number((low + high) / 2, low, high, 9), 0.05)


def _named(pairs: list[Pair], names: str = "ab") -> Audit:
    whole = audit_pages.small()
    return replace(whole, models=[replace(whole.models[0], name=name) for name in names], pairs=pairs)


def test_who_holds_more_is_said_only_where_all_grounds_agree():
    fair, raw = "at equal scale", _pair("a", "b", 0.1, 0.3)  # raw, a wins: nobody is asked
    won, lost, open_, slack = (
        _pair("a", "b", *ends, grounds=fair)
        for ends in ((0.1, 0.3), (-0.3, -0.1), (-0.1, 0.3), (0.01, 0.07))
    )  # the last is beyond chance, but less than a longer attack may change
    assert page.opening(_named([raw, won]))[0].startswith("The confidence of a holds more")
    assert page.opening(_named([raw, lost]))[0].startswith("The confidence of b holds more")
    assert page.opening(_named([raw, open_, slack]))[0].startswith("These images cannot tell")
    assert page.opening(_named([raw, won, lost]))[0].endswith("depends on how they are compared.")
    assert page.opening(_named([raw, lost, open_]))[0].startswith(
        "The confidence of b holds more on some grounds"
    )
    assert [line[1] for line in page.comparison(_named([won, slack])).lines] == ["a", "cannot tell"]


def test_many_models_are_compared_in_a_league():
    pairs = [_pair("a", "b", 0.1, 0.3), _pair("a", "c", -0.1, 0.3), _pair("b", "c", -0.3, -0.1)]
    found = page.league(_named(pairs, "abc"))
    assert found.heading == ["model", "raw"]
    assert found.lines == [["a", "1 / 0 / 1"], ["b", "0 / 2 / 0"], ["c", "1 / 0 / 1"]]


def test_models_never_merge_whatever_their_names(several, nasty):
    alike = replace(
        several, models=[replace(several.models[0], name=name) for name in ("a\n", "a\\n")], pairs=[]
    )
    assert len(Read(page.html(alike)).of("section")) == 2
    assert len(Read(nasty).of("section")) == 4
    assert "<nav" in nasty and len(re.findall(r'<li><a href="#model-', nasty)) == 4


def test_doubts_stand_once_the_heaviest_first():
    def of(kind: str, attack: str, share: float) -> dict[str, object]:
        return {
            "kind": kind,
            "attack": attack,
            "share": share,
            "seen": f"{kind} {share:g}.",
            "advice": "Look.",
        }

    findings = [
        of("step", "pgd", 0.1),
        of("step", "auto", 0.3),
        of("seen", "", 0.9),
        of("step", "auto", 0.3),
    ]
    audit = _of([], findings=findings, left_out=["No gradients."])
    assert page.doubts(audit) == ["No gradients.", "seen 0.9. Look.", "auto: step 0.3. Look. (Also pgd.)"]
    assert page.html(audit).count("step 0.3. Look.") == 1


def test_classes_beyond_the_most_affected_are_counted():
    names = [f"class {i}" for i in range(25)]
    whole = audit_pages.small()
    answers = [
        Answer("needless_by_true", EPS[-1], name, share(np.arange(30) < i)) for i, name in enumerate(names)
    ]
    model = replace(
        whole.models[0], found=answers, evidence=replace(whole.models[0].evidence, classes=names)
    )
    audit = replace(whole, models=[model])
    assert [row[0] for row in page.classes(audit, model)][:2] == ["class 24", "class 23"]
    assert "The 20 most affected classes; 5 more are in the JSON file." in page.html(audit)


def test_the_most_affected_are_right_answers_by_their_loss():
    y = np.array([0, 0, 0, 1])

    def seen(*tops: float) -> Seen:
        return Seen.of(np.array([[top, 1 - top] for top in tops]), y)  # the last answer is wrong

    found = Evidence(y, ("a", "b"), seen(0.9, 0.9, 0.9, 0.9), {0.1: [seen(0.8, 0.6, 0.9, 0.55)]})
    assert most_affected(found, 0.1).tolist() == [1, 0]
    assert most_affected(found, 0.1, n=1).tolist() == [1]


def test_an_audit_shows_the_images_that_its_numbers_speak_of(tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setitem(suite.SIZES, "quick", suite.Size(images=12, steps=3, queries=5, tries=1, longer=2))
    y = torch.arange(20) % 2
    pixels = (90 + 60 * y[:, None, None, None] + 40 * torch.rand(20, 1, 3, 3)).to(torch.uint8)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2)).eval()
    net[1].weight.data = torch.tensor([[-2.0], [2.0]]).expand(2, 9).clone()
    net[1].bias.data = torch.tensor([9.0, -9.0])
    found = poise.audit(
        net, ImageSet("grey", pixels, y, ("dark", "bright")), eps=(0.02, 0.05), out=tmp_path
    )
    (model,) = found.models
    lowest = worst(model.evidence, model.evidence.under)[0.05].top
    places = most_affected(model.evidence, 0.05)
    assert len(model.affected) == len(places) > 5
    for of, place in zip(model.affected, places, strict=True):
        assert of.file == f"image {place + 1} of 12" and of.answer == of.label
        assert of.before == pytest.approx(model.evidence.clean.top[place], abs=1e-6)
        assert of.after == pytest.approx(lowest[place], abs=1e-6)
        assert 0 < np.abs(of.attacked - of.clean).max() <= 0.05 + 1e-6
    assert {file.name for file in tmp_path.glob("audit.*")} == {
        f"audit.{e}" for e in ("html", "json", "md", "tex")
    }
    assert (tmp_path / "audit.html").read_text() == found.to_html()
    assert Read(found._repr_html_()).of("iframe")[0]["srcdoc"] == found.to_html()


def test_files_are_called_by_their_names(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in ("a/one.png", "b/two '.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    data = poise.data.load(f"folder:{tmp_path}")
    assert [name_of(data, i, "none") for i in range(2)] == ["a/one.png", "b/two '.png"]


def test_the_tables_in_other_formats(several, tmp_path: Path):
    written = page.write_page(several, tmp_path)
    assert written == tmp_path / "audit.html" and written.stat().st_size < 5_000_000
    latex, markdown = ((tmp_path / f"audit.{ending}").read_text() for ending in ("tex", "md"))
    assert (
        latex.count(r"\begin{tabular}") == latex.count(r"\bottomrule") == 6
    )  # summary, pairs, four models
    assert r"\textless{}script\textgreater{}" in latex and "<script" not in re.sub(r"(?m)^%.*", "", latex)
    kept = several.models[0].number("trusted_kept", EPS[-1])
    assert (
        intervals.tell_count(kept) in markdown and intervals.tell_count(kept).replace("%", r"\%") in latex
    )
    assert "<script" not in markdown and "threshold 0.7" in markdown and "ε = 8/255" in markdown
