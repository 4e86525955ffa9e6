"""Options on the command line and in a TOML file: a usage error is exit code 2, and says which."""

import json

import pytest

from spikingjelly_signgd.cli import main
from spikingjelly_signgd.cli.options import build_parser, parse


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(text):
    with open("net.toml", "w") as file:
        file.write(text)
    return ["--config", "net.toml"]


CONVERT = ["convert", "zoo:net", "--data", "a.npz", "-o", "net.h5"]


def test_every_command_has_the_common_options():
    _, commands = build_parser()
    names = "check convert search fine-tune evaluate doctor export verify energy bench report"
    assert list(commands) == names.split()
    for command in commands.values():
        known = {option for action in command._actions for option in action.option_strings}
        assert {"--json", "--quiet", "--threads", "--seed", "--config"} <= known


def test_a_file_gives_options_and_the_command_line_wins():
    file = config(
        """
        model = "zoo:net"
        data = "a.npz"
        output = "net.h5"
        time-steps = 8
        tune = false
        keep = ["head", "stem"]
        method = "group"
        mean = [0.5, 1]
        scale_pixels = true
        """
    )
    options = parse(["convert", *file])
    assert (options.model, options.data, options.output) == ("zoo:net", "a.npz", "net.h5")
    assert options.time_steps == 8 and options.tune is False and options.scale_pixels is True
    assert options.keep == ["head", "stem"] and options.method == ["group"]
    assert options.mean == [0.5, 1.0]
    more = ["--time-steps", "4", "--tune", "--keep", "act", "--keep", "b", "c", "--mean", "0.1"]
    options = parse(["convert", "zoo:other", *file, *more, "--method", "signgd"])
    assert options.model == "zoo:other" and options.time_steps == 4 and options.tune is True
    assert options.keep == ["act", "b", "c"] and options.method == ["signgd"]
    assert options.mean == [0.1] and options.data == "a.npz"


def test_a_file_for_several_commands():
    file = config('data = "a.npz"\n[convert]\nseed = 3\n[evaluate]\ntime-steps = [1, 8]')
    assert parse([*CONVERT, *file]).seed == 3
    options = parse(["evaluate", "net.h5", *file])
    assert options.time_steps == [1, 8] and options.seed == 0 and options.data == "a.npz"


def test_a_shape_in_a_file():
    assert parse(["check", "zoo:net", *config("input = [1, 8, 8]")]).input == [1, 8, 8]
    assert parse(["check", "zoo:net", *config('data = "a.npz"')]).data == "a.npz"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour = 1", "convert has no option 'colour'"),
        ("time-steps = 0", "a number of at least 1"),
        ('time-steps = "eight"', "a number belongs here, not 'eight'"),
        ("time-steps = [1, 2]", "cannot be [1, 2]"),
        ("time-steps = true", "cannot be True"),
        ("tune = 1", "is true or false, not 1"),
        ('scale = "global"', "is one of fitted, channel, tensor"),
        ("resize = [8]", "is 2 values"),
        ("resize = [8, 0]", "a number of at least 1"),
        ("std = [0.0]", "a positive number"),
        ("convert = 3", "is a table of options"),
        ("[convert]\nepochs = 3", "convert has no option 'epochs'"),
        ("config = 'other.toml'", "no option 'config'"),
        ("= 3", "is not TOML"),
    ],
)
def test_a_file_that_is_wrong(text, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*CONVERT, *config(text), "--json"])
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and "usage: spikingjelly-signgd convert" in err
    report = json.loads(out)
    assert report["ok"] is False and message in report["error"], report


def test_no_such_file(capsys):
    with pytest.raises(SystemExit) as caught:
        main([*CONVERT, "--config", "absent.toml"])
    assert caught.value.code == 2 and "cannot read 'absent.toml'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "zoo:net", "-o", "net.h5"], "required: --data"),
        (["convert", "zoo:net", "--data", "a.npz"], "required: -o/--output"),
        ([*CONVERT, "--time-steps", "0"], "at least 1"),
        ([*CONVERT, "--std", "0"], "positive"),
        ([*CONVERT, "--mean", "nan"], "finite"),
        ([*CONVERT, "--preset", "mine"], "invalid choice"),
        ([*CONVERT, "--conf", "net.toml"], "unrecognized arguments: --conf"),
        (["check", "zoo:net", "--input", "8", "--data", "a.npz"], "not allowed with"),
        (["check", "zoo:net", "--input", "8", "--scale-pixels"], "--scale-pixels is of --data"),
        (["verify", "net.h5", "--mean", "0.5"], "--mean is of --data"),
        (["evaluate", "net.h5", "--data", "a.npz", "--min-agreement", "99"], "from 0 to 1"),
        (["convert", "m", "--data", "a.npz", "-o", "n.h5", "--size", "1x0x9"], "at least 1"),
        (["evaluate", "net.h5", "--data", "a.npz", "--weights", "w"], "is of --reference"),
        (["evaluate", "net.h5", "--data", "a.npz", "--backend", "brian"], "invalid choice"),
        (["doctor", "net.h5", "--data", "a.npz", "--apply"], "give both, or none"),
        (["doctor", "net.h5", "--data", "a.npz", "-o", "b.h5"], "give both, or none"),
        (["export", "net.h5", "-o", "a.nir", "--format", "onnx"], "invalid choice"),
        (["bench", "net.h5", "--data", "a.npz", "--repeats", "0"], "at least 1"),
    ],
)
def test_usage(arguments, message, capsys):
    for json_too in (False, True):
        with pytest.raises(SystemExit) as caught:
            main([*arguments, *["--json"] * json_too])
        out, err = capsys.readouterr()
        assert caught.value.code == 2 and message in err
        assert bool(out) is json_too
        if json_too:
            assert message in json.loads(out)["error"]
