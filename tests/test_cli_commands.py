"""Each command, as a user types it and through main: what it prints, writes, and its exit code."""

import io
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import cli_zoo
import numpy as np
import pytest
import torch

import spikingjelly_signgd as sg
from spikingjelly_signgd import core
from spikingjelly_signgd.analysis import count_operations
from spikingjelly_signgd.cli import commands, main
from spikingjelly_signgd.cli.data import Data
from spikingjelly_signgd.converters.objectives import OBJECTIVES

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Networks, their exports, and data."""
    folder = tmp_path_factory.mktemp("cli")
    x, y = cli_zoo.data()
    torch.manual_seed(0)
    signgd = sg.convert(cli_zoo.tiny(), x, time_steps=8, tune=False)
    group = sg.convert(cli_zoo.tiny(), x, time_steps=4, method="group", signed=False)
    sg.save(signgd, folder / "net.h5")
    sg.save(group, folder / "group.h5")
    sg.save(sg.convert(cli_zoo.pooled(), x, time_steps=4, method="group"), folder / "pooled.h5")
    sg.export(group, folder / "group.nir")
    np.savez(folder / "test.npz", x=x.numpy(), y=y.numpy())
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def typed(*arguments):
    """As from a shell."""
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "spikingjelly_signgd.cli", *arguments],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


def forked(*arguments):
    """The same in a process of its own that has imported all: a fork of this one."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        if not (child := os.fork()):
            _become(arguments, out.fileno(), err.fileno())
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = [file.seek(0) or file.read() for file in (out, err)]
    return subprocess.CompletedProcess(arguments, code, *texts)


def _become(arguments, out, err):
    code = 1
    try:
        for number, file in ((1, out), (2, err)):
            os.dup2(file, number)
        sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))
        code = main(arguments)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(name, *arguments):
    """One command as it is typed, the others without the seconds that imports take."""
    return (typed if name == "check" else forked)(name, *arguments)


def document(capsys):
    """What stands on standard output is JSON and nothing else."""
    return json.loads(capsys.readouterr().out)


DATA = ["--data", "cli_zoo:data"]
SOME = [*DATA, "--samples", "8"]
QUICK = ["--iterations", "2"]

GOOD = {
    "check": (["cli_zoo:tiny", "--input", "1", "4", "4"], "Sequential can be converted."),
    "convert": (["cli_zoo:tiny", *DATA, "--no-tune", "-o", "a.h5"], "written to a.h5"),
    "search": (["cli_zoo:tiny", *DATA, *QUICK, "--additions", "9", "-o", "k.h5"], "networks tried"),
    "fine-tune": (["net.h5", *DATA, "--epochs", "1", "-o", "t.h5"], "written to t.h5"),
    "evaluate": (["net.h5", "--data", "test.npz"], "96 samples of test.npz"),
    "doctor": (["net.h5", *SOME], "agreement"),
    "export": (["group.h5", "-o", "b.nir"], "no loss"),
    "verify": (["group.nir", "--network", "group.h5", "--samples", "2"], "(nir): verified"),
    "energy": (["net.h5", *SOME], "estimate"),
    "bench": (["net.h5", *SOME, "--repeats", "1"], "8 images at once, T = 8"),
    "report": (["net.h5", *SOME, "-o", "a.html"], "written to a.html"),
}  # fmt: skip

BAD = {
    "check": (["cli_zoo:cosine", "--input", "1", "4", "4"], 3, "aten.cos"),
    "convert": (["cli_zoo:cosine", *DATA, "-o", "c.h5"], 3, "cos"),
    "search": (
        ["cli_zoo:tiny", *DATA, *QUICK, "--additions", "1e-3", "-o", "c.h5"],
        2,
        "cannot be reached",
    ),
    "fine-tune": (["net.h5", *DATA, "--additions", "1e-4", "-o", "c.h5"], 2, "cannot be reached"),
    "evaluate": (["net.h5", *DATA, "--time-steps", "1", "--min-agreement", "1"], 5, "is below"),
    "doctor": (["absent.h5", *DATA], 2, "there is no file 'absent.h5'"),
    "export": (["pooled.h5", "-o", "c.nir"], 3, "max_pool"),
    "verify": (["net.h5", "--network", "group.h5"], 4, ""),
    "energy": (["net.h5", *SOME, "--table", "guess"], 2, "there is no 'guess'; known: "),
    "bench": (["net.h5", "--data", "test.npz", "--reference", "cli_zoo:wide"], 2, "returns [2, 5]"),
    "report": (["net.h5", *DATA, "-o", "absent/a.html"], 2, "the folder 'absent' does not exist"),
}


@pytest.mark.parametrize("name", GOOD)
def test_good(name, folder):
    arguments, text = GOOD[name]
    done = command(name, *arguments)
    assert done.returncode == 0, done.stderr
    assert text in done.stdout and "Traceback" not in done.stderr
    if "-o" in arguments:
        assert (folder / arguments[-1]).stat().st_size > 100


@pytest.mark.parametrize("name", BAD)
def test_bad(name, folder):
    before = set(folder.iterdir())
    arguments, code, text = BAD[name]
    done = command(name, *arguments, "--json")
    assert done.returncode == code, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is False and text in json.dumps(report)
    assert "Traceback" not in done.stderr
    assert set(folder.iterdir()) == before, "a file was left behind"


def test_fine_tuning_follows_outputs_that_are_no_classes(folder, capsys):
    arguments = ["--epochs", "1", "--no-classes", "-o", "far.h5", "--json"]
    assert main(["fine-tune", "net.h5", *DATA, *arguments]) == 0
    last = document(capsys)["fine_tuning"]["history"][-1]
    assert last["accuracy"] is last["agreement"] is None and last["distance"] > 0


def test_every_command_is_run_with_good_and_bad_input():
    from spikingjelly_signgd.cli.commands import COMMANDS

    assert set(COMMANDS) == set(GOOD) == set(BAD)


# -- convert --------------------------------------------------------------------------------------


def test_convert_does_what_convert_does(folder, capsys):
    arguments = ["--time-steps", "6", "--method", "group", "--method", "1=signgd", "--members", "2"]
    assert main(["convert", "cli_zoo:tiny", *DATA, *arguments, "-o", "d.h5", "--json"]) == 0
    report = document(capsys)
    have = sg.load("d.h5")
    method = {"": "group", "1": "signgd"}
    want = sg.convert(cli_zoo.tiny(), cli_zoo.images(), time_steps=6, method=method, members=2)
    assert [n.kind for n in have.neurons] == [n.kind for n in want.neurons] == ["signgd"]
    assert [n.members for n in have.neurons] == [n.members for n in want.neurons] == [2]
    assert torch.equal(have.neurons[0].scale, want.neurons[0].scale)
    assert report["network"]["by_layer"] == {"1": 64} and report["calibration_samples"] == 96
    assert report["provenance"]["command"].startswith("spikingjelly-signgd convert cli_zoo:tiny")


@pytest.mark.parametrize(
    ("options", "attribute"),
    [
        (["--preset", "paper"], ("preset", "paper")),
        (["--scale", "tensor"], ("scale", "tensor")),
        (["--input-coding", "real"], ("input_coding", "real")),
        (["--forms", "local"], ("functions", None)),
        (["--functions", "local"], ("functions", None)),  # its older name
        (["--seed", "3"], ("seed", 3)),
        (["--samples", "40"], ("calibration_samples", 40)),
    ],
)
def test_convert_passes_its_options_on(options, attribute, capsys):
    assert main(["convert", "cli_zoo:pooled", *DATA, "--no-tune", *options, "-o", "e.h5"]) == 0
    name, value = attribute
    found = sg.load("e.h5").provenance[name]
    assert found["max_pool"] == "local" if value is None else found == value


def test_convert_keeps_modules_real_valued(capsys):
    arguments = ["--no-tune", "--keep", "1", "-o", "f.h5", "--json"]
    assert main(["convert", "cli_zoo:tiny", *DATA, *arguments]) == 0
    assert document(capsys)["network"]["kept"] == {"1": 64}
    assert main(["convert", "cli_zoo:tiny", *DATA, "--keep", "act", "-o", "f.h5"]) == 2
    assert "'act'" in capsys.readouterr().err


def test_convert_takes_dead_zones_as_messages_have_them(capsys):
    given = ["--no-tune", "--dead-zone", "2/3", "--dead-zone", "1=0.5", "-o", "j.h5"]
    assert main(["convert", "cli_zoo:tiny", *DATA, *given]) == 0
    found = {node.dead_zone for node in sg.load("j.h5").neurons}
    assert found == {0.5}, found
    assert main(["convert", "cli_zoo:tiny", *DATA, *given[:3], "-o", "j.h5"]) == 0
    assert {node.dead_zone for node in sg.load("j.h5").neurons} == {2 / 3}


def test_convert_tunes(capsys):
    assert main(["convert", "cli_zoo:tiny", *DATA, "--time-steps", "4", "-o", "g.h5"]) == 0
    assert "tuned: output error" in capsys.readouterr().out
    assert sg.Tuning.of(sg.load("g.h5")) is not None
    assert main(["convert", "cli_zoo:tiny", *SOME, "--tune", "-o", "g.h5"]) == 2
    assert "64 calibration samples or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--method", "spiking"], "method is one of"),
        (["--method", "layer9=group"], "'layer9'"),
        (["--members", "two"], "'two' is not a number"),
        (["--dead-zone", "2/0"], "'2/0' is not a number"),
        (["--dead-zone", "3/2"], "in [0, 1), but it is 1.5"),
        (["--momentum", "0.5", "--method", "group"], "momentum has no meaning"),
        (["--signed"], "signed has no meaning"),
        (["-o", "net.txt"], "ends in .h5"),
        (["-o", "."], "ends in .h5"),
        (["-o", "absent/net.h5"], "does not exist"),
    ],
)
def test_convert_refuses(options, text, capsys):
    assert main(["convert", "cli_zoo:tiny", *DATA, "--no-tune", "-o", "h.h5", *options]) == 2
    out, err = capsys.readouterr()
    assert text in err and err.startswith("convert: ") and not out
    assert not Path("h.h5").exists()


def test_an_output_that_was_there_is_replaced_whole_or_not_at_all(capsys):
    Path("i.h5").write_text("old")
    assert main(["convert", "cli_zoo:cosine", *DATA, "-o", "i.h5"]) == 3
    assert Path("i.h5").read_text() == "old"
    assert main(["convert", "cli_zoo:tiny", *DATA, "--no-tune", "-o", "i.h5"]) == 0
    written = sg.load("i.h5")
    assert (written.time_steps, [n.members for n in written.neurons]) == (1, [8])


def test_convert_takes_an_objective(capsys):
    arguments = ["convert", "cli_zoo:tiny", *DATA, "-o", "q.h5", "--objective"]
    assert main([*arguments, "additions", "--json"]) == 0
    assert document(capsys)["tuning"]["weight"] == OBJECTIVES["additions"]
    assert main([*arguments, "0.02"]) == 0
    assert sg.Tuning.of(sg.load("q.h5")).weight == 0.02
    for wrong in ("spikes", "-1", "nan?"):
        try:
            code = main([*arguments, wrong])
        except SystemExit as exit:
            code = exit.code
        assert code == 2 and "objective" in capsys.readouterr().err


def sends(text):
    """Spikes of a neuron and additions for each MAC, as they are printed."""
    found = re.search(
        r"^(\S+) spikes a neuron, (\S+) additions a MAC .* on (\d+) samples$", text, re.M
    )
    assert found, text
    return float(found[1]), float(found[2]), int(found[3])


def test_convert_says_what_the_network_sends(monkeypatch, capsys):
    """Counted on calibration samples; without a simulator it is said that nothing was counted."""
    arguments = ["convert", "cli_zoo:tiny", *DATA, "--no-tune", "-o", "l.h5"]
    assert main(arguments) == 0
    spikes, additions, samples = sends(capsys.readouterr().out)
    snn = sg.build(sg.load("l.h5"))
    want = count_operations(snn, cli_zoo.images()[:samples])
    assert samples == 32 and want.neurons == 64
    assert spikes == pytest.approx(want.spikes / 64, abs=0.005)
    assert additions == pytest.approx(want.additions_per_mac, abs=0.005)
    assert main([*arguments, "--json"]) == 0
    cost = document(capsys)["cost"]
    assert cost["samples"] == 32 and cost["spikes"] == want.spikes / 64
    assert cost["additions_per_mac"] == want.additions_per_mac
    assert cost["parts_per_mac"] == want.parts_per_mac
    monkeypatch.setattr(commands, "build", lambda network: sg.build(network, "absent"))
    assert main(arguments) == 0
    assert "spikes and additions are not counted: " in capsys.readouterr().out
    assert main(["convert", "cli_zoo:tiny", *DATA, "--keep", "1", "--no-tune", "-o", "l.h5"]) == 0
    assert "spikes a neuron" not in capsys.readouterr().out


# -- search ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goal", "name", "value"),
    [
        (["--spikes", "6"], "spikes", 6),
        (["--additions", "9"], "additions", 9.0),
        (["--agreement", "0.5", "--dead-zone", "1/2"], "agreement", 0.5),
    ],
)
def test_search_is_search(goal, name, value, capsys):
    common = ["search", "cli_zoo:tiny", *DATA, *QUICK, "--seed", "3", "-o", "m.h5"]
    assert main([*common, *goal, "--json"]) == 0
    report, have = document(capsys), sg.load("m.h5")
    zone = {"dead_zone": 0.5} if "--dead-zone" in goal else {}
    want = sg.search(
        cli_zoo.tiny(), cli_zoo.images(), iterations=2, seed=3, **{name: value}, **zone
    )
    found = have.provenance["search"]
    assert found == want.provenance["search"] == report["search"]
    assert have.provenance["command"].endswith(f"{goal[-1]} --json")
    assert torch.equal(have.neurons[0].scale, want.neurons[0].scale)
    assert report["path"] == "m.h5" and report["cost"]["samples"] == 32


def test_search_takes_group_neurons_and_modules_kept(capsys):
    np.save("many.npy", cli_zoo.images(110).numpy())
    arguments = ["--spikes", "2", "--methods", "signgd", "group", "--dead-zone", "0", *QUICK]
    given = ["search", "cli_zoo:tiny", "--data", "many.npy", *arguments, "-o", "n.h5", "--json"]
    assert main(given) == 0
    assert "changed" in document(capsys)["search"]
    kept = ["--additions", "9", "--keep", "act", *QUICK, "-o", "n.h5"]
    assert main(["search", "cli_zoo:tiny", *DATA, *kept]) == 2
    assert "'act'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "one of the arguments --spikes --additions --agreement is required"),
        (["--spikes", "2", "--additions", "1"], "not allowed with"),
        (["--spikes", "0"], "a positive number"),
        (["--agreement", "1.5"], "a fraction from 0 to 1"),
        (["--agreement", "1"], "between 0 and 1"),
        (["--spikes", "1.5", "--dead-zone", "0"], "an integer"),
        (["--additions", "1", "--dead-zone", "0"], "neurons with dead zones"),
        (["--spikes", "2", "--methods", "group"], "methods is"),
        (["--spikes", "2", "--samples", "20"], "calibration samples or more"),
        (["--spikes", "2", "--time-steps", "4"], "unrecognized arguments: --time-steps"),
        (["--spikes", "2", "-o", "net.txt"], "ends in .h5"),
    ],
)
def test_search_refuses(options, text, capsys):
    before = set(Path().iterdir())
    arguments = ["search", "cli_zoo:tiny", *DATA, *QUICK, "-o", "o.h5", *options]
    try:
        code = main(arguments)
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    assert code == 2 and text in err and not out
    assert set(Path().iterdir()) == before


def test_search_from_a_file_of_options(folder, capsys):
    (folder / "search.toml").write_text("[search]\nadditions = 9\niterations = 2\n")
    arguments = ["search", "cli_zoo:tiny", *DATA, "--config", "search.toml", "-o", "p.h5"]
    assert main(arguments) == 0
    assert "written to p.h5" in capsys.readouterr().out


# -- evaluate -------------------------------------------------------------------------------------


def test_evaluate_is_evaluate(capsys):
    steps = ["--time-steps", "8", "1", "4", "4"]
    assert main(["evaluate", "net.h5", *DATA, *steps, "--json"]) == 0
    report = document(capsys)
    x, y = cli_zoo.data()
    snn = sg.build(sg.load("net.h5"))
    want = sg.evaluate(snn, [(x, y)], (1, 4, 8), reference=cli_zoo.tiny())
    assert [row["T"] for row in report["rows"]] == [1, 4, 8]
    assert [row["accuracy"] for row in report["rows"]] == list(want.accuracy)
    assert [row["agreement"] for row in report["rows"]] == list(want.agreement)
    errors = [row["error"] for row in report["rows"]]
    assert errors == pytest.approx(list(want.error), rel=1e-4)
    assert report["reference_accuracy"] == 1.0 and report["samples"] == 96


@pytest.mark.parametrize(
    ("option", "simulator"), [("--simulator", "spikingjelly"), ("--backend", "norse")]
)
def test_evaluate_against_the_model_itself(option, simulator, capsys):
    arguments = ["--reference", "cli_zoo:tiny", option, simulator, "--json"]
    assert main(["evaluate", "net.h5", *DATA, *arguments]) == 0
    report = document(capsys)
    assert report["reference"] == "cli_zoo:tiny" and report["simulator"] == simulator
    assert [row["T"] for row in report["rows"]] == [1, 2, 4, 8], "powers of two up to the network's"
    assert main(["evaluate", "net.h5", *DATA, "--reference", "cli_zoo:other", "--json"]) == 0
    assert document(capsys)["reference_accuracy"] < 1


def test_a_network_for_several_sizes_follows_its_data(folder, capsys):
    import numpy as np

    command = [
        "convert",
        "cli_zoo:dense",
        "--data",
        "cli_zoo:images",
        "--no-tune",
        "-o",
        "dense.h5",
    ]
    assert main([*command, "--size", "1x7x9", "--size", "1x6x6"]) == 0
    np.save("large.npy", cli_zoo.images(2).repeat(1, 1, 2, 3).numpy())
    assert main(["evaluate", "dense.h5", "--data", "large.npy", "--time-steps", "1"]) == 0
    assert main(["energy", "dense.h5", "--data", "large.npy"]) == 0
    assert main(["evaluate", "dense.h5", "--data", "cli_zoo:images", "--time-steps", "1"]) == 0
    np.save("wide.npy", cli_zoo.images(2).repeat(1, 1, 1, 2000).numpy())
    assert main(["evaluate", "dense.h5", "--data", "wide.npy"]) == 2
    assert "does not run on samples [1, 4, 8000]" in capsys.readouterr().err


def test_evaluate_reads_an_exact_nir_file(capsys):
    assert main(["evaluate", "group.nir", *DATA, "--time-steps", "4", "--json"]) == 0
    nir = document(capsys)["rows"]
    assert main(["evaluate", "group.h5", *DATA, "--time-steps", "4", "--json"]) == 0
    assert document(capsys)["rows"][0]["accuracy"] == nir[0]["accuracy"]


@pytest.mark.parametrize("what", ["agreement", "accuracy"])
def test_evaluate_below_a_limit(what, capsys):
    at_1 = ["evaluate", "net.h5", *DATA, "--time-steps", "1", f"--min-{what}"]
    assert main([*at_1, "0.99"]) == 5
    assert f"is below --min-{what} 0.99" in capsys.readouterr().out
    assert main([*at_1, "0.01", "--json"]) == 0
    assert document(capsys)["ok"] is True


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--data", "cli_zoo:unlabelled", "--min-accuracy", "0.5"], "needs labels"),
        ([*DATA, "--reference", "cli_zoo:wide"], "returns [2, 5] where the network returns [2, 3]"),
        ([*DATA, "--reference", "cli_zoo:absent"], "cannot load 'cli_zoo:absent'"),
        (["--data", "cli_zoo:uneven"], "have samples of other shapes"),
        (["--data", "cli_zoo:data", "--resize", "8", "8"], "the network takes samples [1, 4, 4]"),
        (["--data", "absent.npz"], "there is no file 'absent.npz'"),
    ],
)
def test_evaluate_refuses(arguments, text, capsys):
    assert main(["evaluate", "net.h5", *arguments]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"no network", "not an HDF5 file"), (None, "is damaged")],
)
def test_a_file_that_is_no_network(content, text, folder, capsys):
    image = bytearray((folder / "net.h5").read_bytes())
    image[-40] ^= 1
    (folder / "broken.h5").write_bytes(content or image)
    assert main(["evaluate", "broken.h5", *DATA]) == 2
    assert text in capsys.readouterr().err
    assert main(["verify", "broken.h5"]) == 4
    assert text in capsys.readouterr().err
    assert main(["evaluate", "test.npz", *DATA]) == 2
    assert "'test.npz' is not a network" in capsys.readouterr().err


# -- doctor, energy, bench, report ----------------------------------------------------------------


def test_doctor_applies_what_it_found(folder, capsys):
    network = sg.load("net.h5")
    (neuron,) = network.neurons
    wrong = {neuron.name: neuron.scale / 8}
    nodes = tuple(
        type(n)(**{**vars(n), "scale": wrong[n.name]}) if n.name in wrong else n
        for n in network.nodes
    )
    sg.save(network.replace(nodes=nodes), "ill.h5")
    arguments = ["--reference", "cli_zoo:tiny", "--json"]
    assert main(["doctor", "ill.h5", *DATA, *arguments, "--apply", "-o", "well.h5"]) == 0
    report = document(capsys)
    assert report["findings"][0]["layer"] == neuron.name and report["applied"]
    errors = []
    for name in ("ill.h5", "well.h5"):
        assert main(["evaluate", name, *DATA, "--time-steps", "8", "--json"]) == 0
        errors.append(document(capsys)["rows"][0]["error"])
    assert errors[1] < 0.5 * errors[0]


def test_doctor_writes_a_healthy_network_as_it_is(capsys):
    network = sg.convert(cli_zoo.tiny(), cli_zoo.images(), time_steps=64, tune=False)
    sg.save(network, "healthy.h5")
    assert main(["doctor", "healthy.h5", *DATA, "--apply", "-o", "same.h5", "--json"]) == 0
    report = document(capsys)
    assert not report["applied"] and not report["findings"]
    assert sg.load("same.h5").time_steps == 64


def test_energy_by_table(capsys):
    from spikingjelly_signgd.analysis.energy import TABLES

    name = next(iter(TABLES))
    arguments = ["--table", name, "--time-steps", "2", "8", "--json"]
    assert main(["energy", "net.h5", *SOME, *arguments]) == 0
    report = document(capsys)
    found = sg.analysis.count_operations(sg.build(sg.load("net.h5")), cli_zoo.images(8), 8)
    assert name in json.dumps(report) and "estimate" in json.dumps(report)
    others = [other for other in TABLES if other != name]
    assert not any(f'"{other}"' in json.dumps(report) for other in others)
    assert str(found.synaptic).removesuffix(".0") in json.dumps(report)


def test_bench_times_what_it_says(capsys):
    arguments = ["--time-steps", "4", "--repeats", "3", "--reference", "cli_zoo:tiny"]
    threads = torch.get_num_threads()
    assert main(["bench", "net.h5", *SOME, *arguments, "--threads", "1", "--json"]) == 0
    assert torch.get_num_threads() == threads, "threads are as they were"
    report = document(capsys)
    assert report["threads"] == 1 and report["time_steps"] == 4 and report["samples"] == 8
    spiking = report["spiking"]
    assert len(spiking["runs"]) == 3 and spiking["min"] == min(spiking["runs"])
    assert spiking["image_and_step"] == pytest.approx(spiking["median"] / 32)
    assert report["ratio"] == pytest.approx(spiking["median"] / report["source"]["median"])
    assert (
        report["kernels"] == {"1": {"runs": "cpu", "reason": ""}}
        or report["kernels"]["1"]["reason"]
    )


def test_report_holds_certificates(folder, capsys):
    assert main(["verify", "group.nir", "--network", "group.h5", "-o", "cert.json"]) == 0
    arguments = ["--certificate", "group.nir", "--reference", "cli_zoo:tiny"]
    assert main(["report", "group.h5", *SOME, *arguments, "-o", "b.html", "--json"]) == 0
    capsys.readouterr()
    page = Path("b.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html") and "group.nir" in page
    assert "spikingjelly-signgd report group.h5" in page
    # what was once verified says nothing about the network of this report
    assert main(["report", "group.h5", *SOME, "--certificate", "cert.json", "-o", "c.html"]) == 2
    assert "which are verified against the network" in capsys.readouterr().err
    assert not Path("c.html").exists()


# -- export and verify ----------------------------------------------------------------------------


def test_export_and_verify(capsys, monkeypatch):
    pytest.importorskip("nir")
    lava = ["--profile", "group", "--weight-bits", "6", *DATA]
    assert main(["export", "group.h5", "-o", "c.net", *lava, "--json"]) == 0
    report = document(capsys)
    monkeypatch.delenv("LAVA_PYTHON", raising=False)
    assert main(["verify", "c.net", "--json"]) == 6  # nothing differs, but Lava is not there
    found = document(capsys)
    assert found["state"] == "not checked" and found["ok"] is False
    assert report["format"] == "lava" and report["report"]["agreement"] > 0.5
    single = sg.convert(
        cli_zoo.tiny(), cli_zoo.images(), time_steps=4, method="group", members=1, signed=False
    )
    sg.save(single, "single.h5")
    nir = ["--mode", "platform", "--dialect", "lif"]
    assert main(["export", "single.h5", "-o", "any.bin", "--format", "nir", *nir, "--json"]) == 0
    report = document(capsys)["report"]
    assert (report["mode"], report["dialect"]) == ("platform", "lif") and report["losses"]
    assert main(["export", "single.h5", "-o", "strict.nir", *nir, "--strict"]) == 3
    assert "nothing may be lost" in capsys.readouterr().err and not Path("strict.nir").exists()
    assert main(["export", "group.h5", "-o", "again.h5"]) == 0
    assert Path("again.h5").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-o", "x.onnx"], "does not say its format"),
        (["-o", "x.nir", "--weight-bits", "6"], "--weight-bits: not of the format nir"),
        (["-o", "x.nir", "--data", "test.npz"], "--data: not of the format nir"),
        (["-o", "x.h5", "--mode", "exact"], "--mode: not of the format hdf5"),
    ],
)
def test_export_refuses(arguments, text, capsys):
    assert main(["export", "group.h5", *arguments]) == 2
    assert text in capsys.readouterr().err


def test_verify_embeds_and_writes_its_certificate(folder, capsys):
    Path("v.h5").write_bytes(Path("net.h5").read_bytes())
    assert main(["verify", "v.h5", "--data", "test.npz", "--json"]) == 0
    report = document(capsys)
    assert report["samples"] == 8 and report["inputs"].startswith("given")
    assert Path("v.h5").read_bytes() == Path("net.h5").read_bytes()
    arguments = ["--network", "net.h5", "--time-steps", "3", "-o", "v.json", "--embed"]
    assert main(["verify", "v.h5", *arguments]) == 0
    assert Path("v.h5").read_bytes() != Path("net.h5").read_bytes()
    certificate = json.loads(Path("v.json").read_text())
    assert certificate["ok"] and certificate["time_steps"] == 3
    assert main(["verify", "test.npz"]) == 2
    assert "does not say its format" in capsys.readouterr().err


# -- of every command -----------------------------------------------------------------------------


def test_standard_output_is_kept_for_the_document(capsys):
    assert main(["check", "cli_zoo:loud", "--input", "1", "4", "4", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["ok"] and "building the model" in err


def test_quiet(capsys):
    quiet = ["--input", "1", "4", "4", "--quiet"]
    assert main(["check", "cli_zoo:loud", *quiet]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["check", "cli_zoo:cosine", *quiet, "--json"]) == 3
    assert document(capsys)["ok"] is False
    assert main(["check", "cli_zoo:absent", *quiet]) == 2
    out, err = capsys.readouterr()
    assert not out and "cannot load" in err


def test_progress_bars_on_a_terminal(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("SIGNGD_PROGRESS", "auto")
    monkeypatch.setitem(core.progress.AFTER, "bar", 0.0)
    evaluate = ["evaluate", "net.h5", *SOME, "--json"]
    assert main(evaluate) == 0 and document(capsys)["samples"] == 8
    shown = terminal.getvalue()
    assert "\revaluating" in shown
    assert main([*evaluate, "--quiet"]) == 0 and document(capsys)["samples"] == 8
    assert terminal.getvalue() == shown


def test_interrupted(capsys):
    assert main(["check", "cli_zoo:interrupted", "--input", "1", "4", "4"]) == 130
    assert capsys.readouterr().err == "check: interrupted\n"


def test_warnings_are_lines_and_in_the_document(capsys):
    arguments = ["cli_zoo:tiny", *DATA, "--no-tune", "--preset", "paper", "--input-coding", "spike"]
    arguments += ["--input-scale", "0.01", "--time-steps", "2", "-o", "w.h5"]
    assert main(["convert", *arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)["warnings"]
    assert found and all(f"warning: {line}" in err for line in found)


def test_the_same_command_gives_the_same_file(capsys):
    for name in ("one", "two"):
        Path(name).mkdir()
        os.chdir(name)
        assert main(["convert", "cli_zoo:tiny", *DATA, "--no-tune", "-o", "net.h5"]) == 0
        os.chdir("..")
    assert Path("one/net.h5").read_bytes() == Path("two/net.h5").read_bytes()


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m spikingjelly_signgd.cli check cli_zoo:tiny --input 1 4 4 | head -c 1",
        shell=True, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    )  # fmt: skip
    assert len(done.stdout) == 1 and not done.stderr


def test_doctor_and_report_of_many_samples_read_batches(monkeypatch, capsys):
    given = ["net.h5", "--data", "test.npz", "--samples", "96", "--time-steps", "2"]
    assert main(["doctor", *given, "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(commands, "WHOLE", 95)
    monkeypatch.setattr(Data, "x", property(lambda _: pytest.fail("all samples were read at once")))
    assert main(["doctor", *given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == whole  # 256 are examined
    assert main(["report", *given, "-o", "many.html"]) == 0
    text = Path("many.html").read_text("utf-8")
    assert "96 samples" in text and "sha256 of 64 of them" in text
