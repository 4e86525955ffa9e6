"""The HTML report: what it says, that it is whole and escaped, and how a browser shows it."""

import io
import re
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from browser import Browser, find_chromium
from data import digits
from networks import load_network
from PIL import Image
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import report as module
from spikingjelly_signgd.analysis import write_report

CHROMIUM = find_chromium()
SECTIONS = list(module.SECTIONS)
HOSTILE = '<script>alert(1)</script>"><img src=http://127.0.0.1:9/x onerror=alert(2)>&--><!--'


class Tree(HTMLParser):
    """The elements with their attributes, and the text outside of <style>."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.said, self.within, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in ("meta", "br", "hr", "img", "col"):
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.elements.append((name, dict(attributes)))

    def handle_endtag(self, name):
        assert self.open.pop() == name  # well nested

    def handle_data(self, data):
        if "style" not in self.open:
            self.said.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.said).split())

    def names(self):
        return {name for name, _ in self.elements}


def read(path):
    tree = Tree(path.read_text(encoding="utf-8"))
    assert tree.open == []
    return tree


class Small(nn.Module):
    """The path of its layers may be anything."""

    def __init__(self, name="hidden", outputs=3):
        super().__init__()
        self.add_module("first", nn.Linear(4, 6))
        self.add_module(name, nn.ReLU())
        self.add_module("last", nn.Linear(6, outputs))
        self.order = ("first", name, "last")

    def forward(self, x):
        for name in self.order:
            x = getattr(self, name)(x)
        return x


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model, x = Small().eval(), torch.randn(12, 4)
    network = sg.convert(model, x, time_steps=4, tune=False, dead_zone=0)
    return model, sg.build(network), x, torch.randint(3, (12,))


@pytest.fixture(scope="module")
def plain(small, tmp_path_factory):
    model, snn, x, y = small
    return write_report(
        tmp_path_factory.mktemp("plain") / "r.html", snn, x, y, reference=model,
        check=sg.check(model, x), samples=5, command="make it", title="A title",
    )  # fmt: skip


def test_a_report_says_what_was_measured(small, plain):
    model, snn, x, y = small
    tree = read(plain)
    ids = [a["id"] for name, a in tree.elements if name == "section"]
    assert ids == SECTIONS
    result = sg.evaluate(snn, [(x, y)], (1, 2, 4), reference=model)
    for t, accuracy, agreement in zip(
        result.time_steps, result.accuracy, result.agreement, strict=True
    ):
        assert f"{t} {100 * accuracy:.2f} % {100 * agreement:.2f} %" in tree.text
    for said in ("A title", "make it", "Small can be converted.", "hidden", "12 samples", "relu",
                 torch.__version__, sg.__version__, "45 nm fp32",
                 "SignGD neurons without a dead zone send a spike in every step",
                 "Measured on 5 samples", "No certificate was given"):  # fmt: skip
        assert said in tree.text
    assert ": not measured." not in tree.text and "No picture" not in tree.text
    assert sum(name == "svg" for name, _ in tree.elements) == 10
    assert "script" not in tree.names() and "link" not in tree.names()


def test_names_of_layers_are_not_read_as_counts(tmp_path):
    model, x = Small("4").eval(), torch.randn(6, 4)
    network = sg.convert(model, x, time_steps=2, tune=False)
    page = write_report(tmp_path / "r.html", sg.build(network), x).read_text()
    captions = " ".join(re.findall(r"<figcaption>(.*?)</figcaption>", page))
    assert "One neuron of layer “4” on its way" in captions
    assert "Spikes of layer “4” for" in captions and not re.search(r"\bof 4\b", captions)


def test_numbers_are_rounded(plain):
    """But for versions and papers, no more than four digits behind the point."""
    text = read(plain).text
    assert re.search(r"error: 0\.\d+", text), "the plan's errors are there"
    said = re.sub(r"(doi|arXiv):\S+", "", text)
    assert not re.findall(r"\d\.\d{5,}", said)


def test_values_of_the_provenance_in_words():
    value = {"a": 0.1571664021751708, "b": {"c": 2, "d": [0.5, 1e-9]}, "e": ()}
    assert module._in_words(value) == "a: 0.1572; b: (c: 2, d: 0.5, 1e-09); e: none"
    assert module._in_words(3) == "3" and module._in_words({}) == "none"


def test_nothing_in_the_page_leads_out_of_it(plain):
    text = plain.read_text()
    elements = Tree(text).elements
    for name, attributes in elements:
        for key, value in attributes.items():
            if key.split(":")[-1] in ("href", "src", "srcset", "action", "data"):
                assert value.startswith(("#", "data:image/png;base64,")), (name, key, value)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    (policy,) = [a for _, a in elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy["content"].startswith("default-src 'none'")


def test_references_within_the_page_lead_somewhere_and_names_are_unique(plain):
    text = plain.read_text()
    elements = Tree(text).elements
    ids = [a["id"] for _, a in elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = {v[1:] for _, a in elements for k, v in a.items()
             if k.endswith("href") and v.startswith("#")}  # fmt: skip
    links |= set(re.findall(r"url\(#([^)]*)\)", text))
    assert links and links <= set(ids)


def test_the_page_about_it(tmp_path, monkeypatch, capsys):
    """Its code runs, and writes what it says."""
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parent.parent / "docs/report.md").read_text()
    scope = {}
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(code, scope)
    assert "'accuracy':" in capsys.readouterr().out
    for name in re.findall(r'"(\w+\.(?:html|png|svg))"', text):
        assert (tmp_path / name).stat().st_size > 1000
    from spikingjelly_signgd import analysis

    plots = {name for name in analysis.__all__ if name.startswith("plot_")}
    assert plots == set(re.findall(r"^\| `(plot_\w+)`", text, flags=re.MULTILINE))


def test_without_labels_there_is_no_accuracy(small, tmp_path):
    _, snn, x, _ = small
    tree = read(write_report(tmp_path / "r.html", snn, x))
    assert "No labels were given: accuracy was not measured." in tree.text
    assert "no reference was given" in tree.text
    assert "accuracy at T" not in tree.text and "accuracy of the source" not in tree.text
    assert "The coverage of the source network was not given" in tree.text
    assert "The command was not given" in tree.text


def test_outputs_that_are_no_classes(tmp_path):
    class Image(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()

        def forward(self, x):
            return self.act(self.conv(x))

    x = torch.rand(4, 1, 5, 5)
    snn = sg.build(sg.convert(Image().eval(), x, time_steps=4, tune=False))
    tree = read(write_report(tmp_path / "r.html", snn, x))
    assert "mean_iou" in tree.text and "agreement at T" not in tree.text
    assert "Layers at T = 4" in tree.text and "Energy of one inference" in tree.text


def test_neurons_that_the_doctor_does_not_know(tmp_path):
    model, x = Small().eval(), torch.randn(6, 4)
    network = sg.convert(model, x, time_steps=4, method="subgradient")
    tree = read(write_report(tmp_path / "r.html", sg.build(network), x))
    assert "The error layer by layer: not measured. Diagnose examines signGD" in tree.text
    assert "Accuracy" in tree.text and "Neurons at work" in tree.text


def test_what_is_too_much_to_record(small, tmp_path, monkeypatch):
    """Fewer samples are drawn, then only the layers that are looked at."""
    from spikingjelly_signgd.analysis import recording

    _, snn, x, y = small
    one = 2 * 4 * 6 * 4  # decoded and spikes, float32, 6 neurons, 4 steps
    assert sum(snn.network.count().values()) == 6
    monkeypatch.setattr(recording, "LARGEST", 5 * one)
    tree = read(write_report(tmp_path / "r.html", snn, x, y))
    assert "4 samples, T = 4. Drawn are" in tree.text.replace("\u00a0", " ")
    monkeypatch.setattr(recording, "LARGEST", one - 1)
    tree = read(write_report(tmp_path / "r.html", snn, x, y))
    assert "What the neurons send: not measured. Record would keep" in tree.text


def test_inputs_in_half_precision(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # sooner done
    model, x = Small().eval(), torch.randn(6, 4)
    snn = sg.build(sg.convert(model, x, time_steps=4, tune=False))
    tree = read(write_report(tmp_path / "r.html", snn.bfloat16(), x.bfloat16()))
    assert "6 samples of [4], sha256" in tree.text


def test_group_neurons(tmp_path):
    torch.manual_seed(0)
    model, x = Small().eval(), torch.randn(6, 4)
    network = sg.convert(model, x, time_steps=4, method="group", members=4, tune=False)
    tree = read(write_report(tmp_path / "r.html", sg.build(network), x))
    assert "sent as one integer" in tree.text
    assert "A spike adds one threshold to the output of its neuron." in tree.text
    assert "m is the number of members of a group neuron." in tree.text
    assert "signGD" not in tree.text and "signs that" not in tree.text
    assert "SignGD neurons without a dead zone send a spike in every step" not in tree.text


def test_without_matplotlib(small, tmp_path, monkeypatch):
    _, snn, x, y = small
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    tree = read(write_report(tmp_path / "r.html", snn, x, y))
    assert "svg" not in tree.names()
    assert "plots need the package 'matplotlib'" in tree.text
    assert "Layers at T = 4" in tree.text


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    torch.manual_seed(0)
    name = HOSTILE.replace(".", "")  # torch allows no dots there
    model, x = Small(name).eval(), torch.randn(6, 4)
    network = sg.convert(model, x, time_steps=4, tune=False)
    certificate = sg.Certificate(HOSTILE, HOSTILE, HOSTILE, HOSTILE, 1, 4, (), (HOSTILE,),
                                 {HOSTILE: HOSTILE})  # fmt: skip
    network = network.replace(provenance={**network.provenance, HOSTILE: [HOSTILE, 1]})
    return write_report(
        tmp_path_factory.mktemp("hostile") / "r.html", sg.build(network), x, reference=model,
        check=sg.check(model, x), certificates=[certificate], command=HOSTILE, title=HOSTILE,
    )  # fmt: skip


def test_hostile_names_are_text(hostile):
    tree = read(hostile)
    assert not tree.names() & {"script", "img", "iframe", "object", "link"}
    assert not any(key.startswith("on") for _, a in tree.elements for key in a)
    assert HOSTILE in tree.text and HOSTILE.replace(".", "") in tree.text


def test_an_interrupted_write_leaves_the_old_file(small, tmp_path, monkeypatch):
    _, snn, x, y = small
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # sooner done
    path = tmp_path / "r.html"
    path.write_text("old")

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(KeyboardInterrupt):
            write_report(path, snn, x, y)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    assert write_report(path, snn, x, y).read_text().startswith("<!DOCTYPE html>")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"path": "absent/r.html"}, sg.FormatError, "does not exist"),
        ({"path": "."}, sg.FormatError, "is a folder"),
        ({"x": torch.randn(3, 5)}, sg.InputError, r"the input is \[B, 4\]"),
        ({"x": torch.empty(0, 4)}, sg.InputError, "at least one sample"),
        ({"x": torch.full((3, 4), float("nan"))}, sg.InputError, "NaN"),
        ({"y": torch.zeros(3)}, sg.InputError, "labels are class indices"),
        ({"y": [1, 2]}, sg.InputError, "y is list"),
        ({"time_steps": 0}, sg.InputError, "at least 1"),
        ({"samples": 0}, sg.InputError, "samples is an integer"),
        ({"certificates": ["net.h5"]}, sg.InputError, "list of what verify"),
        ({"certificates": 1}, sg.InputError, "list of what verify"),
        ({"check": "ok"}, sg.InputError, "check is what check"),
        ({"snn": nn.Identity()}, sg.InputError, "build"),
    ],
)
def test_bad_input(small, tmp_path, monkeypatch, change, error, message):
    monkeypatch.chdir(tmp_path)
    _, snn, x, y = small
    given = {"path": "r.html", "snn": snn, "x": x, "y": y} | change
    with pytest.raises(error, match=message):
        write_report(**given)
    assert list(tmp_path.iterdir()) == []


def test_a_network_is_left_as_it_was(small, tmp_path, monkeypatch):
    model, snn, x, y = small
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # sooner done
    before = sg.run(snn, x, 4)[4]
    training = model.train(True).training
    write_report(tmp_path / "r.html", snn, x, y, reference=model)
    assert model.training is training and snn.listener is None
    assert torch.equal(sg.run(snn, x, 4)[4], before)
    model.eval()


# -- in a browser --------------------------------------------------------------------------------

in_a_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium (Debian's package chromium, or its path in $CHROMIUM)"
)


@pytest.fixture(scope="module")
def convnext(tmp_path_factory):
    """The report of the example, with fewer samples and without tuning."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("report")
    data, model = digits(), load_network("convnext", "digits")
    images = data.train.images[:64]
    network = sg.convert(model, images, time_steps=8, tune=False)
    sg.save(network, folder / "convnext.h5")
    certificate = sg.verify(folder / "convnext.h5", data.test.images[:2], network=network)
    return write_report(
        folder / "report.html", sg.build(network), data.test.images[:40], data.test.labels[:40],
        reference=model, check=sg.check(model, images[:2]), certificates=[certificate],
        samples=16, command="python examples/report.py", title="ConvNeXt",
    )  # fmt: skip


@pytest.mark.slow
def test_the_report_of_convnext_is_small(convnext):
    assert 100_000 < convnext.stat().st_size < 3_000_000
    tree = read(convnext)
    assert "ConvNeXt can be converted." in tree.text and "convnext.h5 verified" in tree.text


@pytest.fixture
def browser(tmp_path):
    with Browser(CHROMIUM, tmp_path / "profile") as browser:
        browser.call("Network.emulateNetworkConditions", offline=True, latency=0,
                     downloadThroughput=0, uploadThroughput=0)  # fmt: skip
        yield browser


def asked_for(browser):
    """The addresses that were asked for, but for what lies in the page."""
    asked = browser.said("Network.requestWillBeSent")
    return [r["request"]["url"] for r in asked if not r["request"]["url"].startswith("data:")]


def complaints(browser):
    return [
        *browser.said("Runtime.exceptionThrown"),
        *browser.said("Log.entryAdded"),
        *browser.said("Runtime.consoleAPICalled"),
    ]


@in_a_browser
def test_the_browser_would_notice(browser, tmp_path):
    """A page that asks for a picture, fails and complains."""
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('no')</script>")
    browser.open(page.as_uri())
    assert asked_for(browser) == [page.as_uri(), "http://127.0.0.1:9/x.png"]
    assert len(complaints(browser)) == 2
    assert browser.evaluate("document.images[0].naturalWidth") == 0


@in_a_browser
def test_convnext_in_a_browser(browser, convnext):
    browser.shape(1200, 900)
    browser.open(convnext.as_uri())
    assert asked_for(browser) == [convnext.as_uri()]
    assert complaints(browser) == []
    assert browser.evaluate("document.title") == "ConvNeXt"
    sections = browser.evaluate("[...document.querySelectorAll('section')].map(s => s.id)")
    assert sections == SECTIONS
    heads = browser.evaluate("[...document.querySelectorAll('h2')].map(h => h.innerText)")
    assert heads == list(module.SECTIONS.values())
    assert_pictures(browser)
    assert_not_blank(browser.screenshot())


def assert_pictures(browser):
    """Every picture has a size and is drawn, those within it are decoded."""
    images = browser.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
    assert all(images)
    sizes = browser.evaluate(
        "[...document.querySelectorAll('figure svg')].map(s => [s.getBoundingClientRect().width, "
        "s.getBBox().width, s.querySelectorAll('path, use').length])"
    )
    assert len(sizes) == 11
    assert all(width > 300 and box > 200 and parts > 20 for width, box, parts in sizes)
    inner = browser.evaluate(
        "Promise.all([...document.querySelectorAll('svg image')].map(async i => { const p = new "
        "Image(); p.src = i.href.baseVal; await p.decode(); return p.naturalWidth }))"
    )
    assert inner and all(width > 0 for width in inner)


def assert_not_blank(png):
    """Colours of pictures in every part of the page, and no part of it empty."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tall picture
        image = Image.open(io.BytesIO(png)).convert("RGB")
    assert image.width == 1200 and image.height > 5000
    for top in range(0, image.height - 1500, 1500):
        part = image.crop((0, top, image.width, top + 1500))
        assert len(part.getcolors(1 << 24)) > 20, f"nothing is seen from {top} on"
    blue = sum(n for n, c in image.getcolors(1 << 24) if c == (0, 114, 178))
    assert blue > 10_000


@in_a_browser
@pytest.mark.parametrize("dark", [False, True])
def test_a_narrow_window_and_the_dark(browser, convnext, dark):
    """Nothing is wider than the window but what scrolls by itself; text is told from its ground."""
    browser.shape(390, 800, dark=dark)
    browser.open(convnext.as_uri())
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    ground, ink, drawn = browser.evaluate(
        "(() => { const of = (e, k) => getComputedStyle(e)[k]; "
        "const t = document.querySelector('figure svg [id*=text_] g'); "
        "return [of(document.body, 'backgroundColor'), of(document.body, 'color'), "
        "of(t, 'fill')] })()"
    )
    light = [sum(map(int, re.findall(r"\d+", color)[:3])) / 765 for color in (ground, ink, drawn)]
    assert abs(light[0] - light[1]) > 0.7 and abs(light[0] - light[2]) > 0.7
    assert (light[0] < 0.5) is dark


@in_a_browser
def test_what_scrolls_shows_that_it_does(browser, convnext):
    """It fades at the side where there is more, and only what is wider than its box does."""
    browser.shape(390, 800)
    browser.open(convnext.as_uri())
    boxes = browser.evaluate(
        "[...document.querySelectorAll('.wide, .drawn')].map(e => [e.scrollWidth > e.clientWidth, "
        "getComputedStyle(e).maskImage != 'none'])"
    )
    assert [True, True] in boxes and [False, False] in boxes
    assert all(wider == fades for wider, fades in boxes)
    assert browser.evaluate("document.querySelector('.narrow').checkVisibility()")
    browser.shape(1280, 800)
    assert not browser.evaluate("document.querySelector('.narrow').checkVisibility()")


WORDS = """(() => {
  const broken = [], range = document.createRange();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walk.nextNode()); )
    for (const word of node.data.matchAll(/\\b[A-Za-z]{2,24}\\b/g)) {
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map(r => r.top)).size > 1) broken.push(word[0]);
    }
  return broken;
})()"""


@in_a_browser
def test_words_are_whole_in_a_narrow_window(browser, convnext):
    browser.shape(390, 800)
    browser.open(convnext.as_uri())
    assert browser.evaluate(WORDS) == []
    browser.evaluate("document.body.style.wordBreak = 'break-all'")
    assert browser.evaluate(WORDS) != []  # they would be seen


@in_a_browser
def test_texts_of_pictures_have_nine_pixels(browser, convnext):
    """As wide as a picture may be squeezed: by its width, and the least of its letters."""
    browser.shape(390, 800)
    browser.open(convnext.as_uri())
    scales = browser.evaluate(
        "[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().width / "
        "(s.viewBox.baseVal.width / 72 * 96))"
    )
    assert all(scale * 8.33 / 72 * 96 >= 9 for scale in scales)


@in_a_browser
def test_it_can_be_printed(browser, convnext):
    browser.open(convnext.as_uri())
    assert browser.printed().startswith(b"%PDF")
    browser.shape(794, 1123, dark=True, media="print")  # on white paper, whatever the screen
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)"
    )


@in_a_browser
def test_hostile_names_in_a_browser(browser, hostile):
    browser.open(hostile.as_uri())
    assert asked_for(browser) == [hostile.as_uri()]
    assert complaints(browser) == []
    assert browser.said("Page.javascriptDialogOpening") == []
    assert browser.evaluate("document.scripts.length + document.images.length") == 0
    assert browser.evaluate("document.title") == HOSTILE


def test_the_style_goes_with_the_package():
    pyproject = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert '"spikingjelly_signgd.analysis" = ["*.css"]' in pyproject
