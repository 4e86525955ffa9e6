"""The options of every command, on the command line or in a TOML file. Loads no torch."""

from __future__ import annotations

import argparse
import json
import math
import tomllib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ..core.registry import FORMATS, SIMULATORS
from .version import Version

PROGRAM = "spikingjelly-signgd"
CODES = (
    "exit codes: 0 ok, 2 usage (also data and models that cannot be used), 3 unsupported "
    "operations, 4 verification failed, 5 below --min-agreement or --min-accuracy, 6 nothing "
    "differs but not all could be compared (verify, report), 130 interrupted"
)
MODEL = (
    "package.module:factory, torchvision:NAME[:WEIGHTS], timm:NAME[:TAG], hf:PATH_OR_NAME, or a "
    ".pt2 of torch.export.save"
)
DATA = (
    "a file .npz (x and y, or file.npz:images,labels), .npy or IDX (also .gz), a folder of images "
    "(classes in subfolders), a .txt of texts, one a line, torchvision:NAME[:ROOT], timm's "
    "torch/NAME[:ROOT], hfds/NAME, wds/NAME or tfds/NAME, or package.module:loader"
)
NETWORK = "a network that convert wrote (.h5), or an exact .nir file"


class Parser(argparse.ArgumentParser):
    """One whose errors are JSON on standard output where --json was given.

    Options are written out: of shortened ones --config would be seen too late.
    """

    json = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        if Parser.json:
            print(json.dumps({"ok": False, "error": message, "kind": "usage"}))
        super().error(message)


class Collect(argparse.Action):
    """Values of an option that is given several times; those of a file give way to them."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        begun = vars(namespace).setdefault("_begun", set())
        before = getattr(namespace, self.dest) or [] if self.dest in begun else []
        begun.add(self.dest)
        setattr(namespace, self.dest, [*before, *(values if self.nargs else [values])])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; SystemExit(2) for those that cannot be."""
    Parser.json = "--json" in arguments
    parser, commands = build_parser()
    name = next((a for a in arguments if a in commands), None)
    file = _config_file(arguments)
    if name is not None and file is not None:
        _configure(commands[name], name, file, set(commands))
    options = parser.parse_args(arguments)
    # what stands in the file is said to the parser too late for its choice of how to fail
    Parser.json = Parser.json or options.json
    if getattr(options, "backend", None) is not None:
        options.simulator = options.backend
    check = CHECKS.get(options.command)
    if check is not None:
        check(commands[options.command], options)
    return options


# -- what the options are -------------------------------------------------------------------------


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(
        prog=PROGRAM,
        description="Trained PyTorch networks as spiking networks of signGD and group neurons.",
        epilog=CODES,
    )
    parser.add_argument("--version", action=Version, help="what is installed, and the kernels")
    sub = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands: dict[str, Parser] = {}

    def command(name: str, text: str) -> Parser:
        commands[name] = sub.add_parser(name, help=text, description=text, epilog=CODES)
        return commands[name]

    check = command(
        "check", "show what each operation of a model becomes; exit code 3 if one is unsupported"
    )
    _model(check)
    shape = check.add_argument_group("the shape of a sample (one of these)")
    either = shape.add_mutually_exclusive_group(required=True)
    either.add_argument(
        "--input", type=count, nargs="+", metavar="SIZE", help="shape of one sample"
    )
    _data(check, required=False, group=either)
    check.add_argument(
        "--forms",
        "--functions",
        choices=("whole", "local"),
        help="as for convert: one neuron for a compound operation, or several",
    )

    convert = command("convert", "convert a trained model to a spiking network (.h5)")
    _model(convert)
    _data(convert, samples=512, what="calibration data")
    _output(convert, "the file, .h5")
    _conversion(convert)

    search = command(
        "search", "search the best network for a budget, or the cheapest for a target (.h5)"
    )
    _model(search)
    _data(search, samples=512, what="calibration data")
    _output(search, "the file, .h5")
    _search(search)

    fine_tune = command("fine-tune", "train a converted network further with its spikes (.h5)")
    _network(fine_tune)
    _data(fine_tune, what="training data")
    _output(fine_tune, "the file, .h5")
    _fine_tuning(fine_tune)
    _simulator(fine_tune)

    evaluate = command(
        "evaluate",
        "measure accuracy and agreement with the source at each T; for streams, over a clip",
    )
    _network(evaluate)
    _data(evaluate)
    _reference(evaluate)
    _steps(evaluate)
    _simulator(evaluate)
    evaluate.add_argument("--batch-size", type=count, default=64, metavar="N")
    evaluate.add_argument(
        "--metric", action=Collect, metavar="[OUTPUT=]NAME",
        help="metric of an output, for tasks other than classification; repeatable",
    )  # fmt: skip
    for what in ("agreement", "accuracy"):
        evaluate.add_argument(
            f"--min-{what}", type=fraction, metavar="FRACTION",
            help=f"exit code 5 if the {what} at the largest T is below",
        )  # fmt: skip
    evaluate.add_argument(
        "--resume", metavar="FILE.jsonl",
        help="write finished batches to this file, and skip those that it already has",
    )  # fmt: skip
    evaluate.add_argument(
        "--results-file", metavar="FILE", help="write a row for each T, .json or .csv"
    )
    evaluate.add_argument(
        "--counted", type=none_or_more, default=32, metavar="N",
        help="samples for the spike and addition counts of --results-file, 0 for none",
    )  # fmt: skip

    doctor = command("doctor", "find which layer causes the error, why, and how to fix it")
    _network(doctor)
    _data(doctor, samples=64)
    _reference(doctor)
    _steps(doctor)
    doctor.add_argument("--apply", action="store_true", help="write the fixed network to -o")
    _output(doctor, "the fixed network, .h5", required=False)

    export = command(
        "export", "write a network for another tool; exit code 3 if the format cannot express it"
    )
    _network(export)
    _output(export, "the file: .nir, .net or .h5")
    _data(export, required=False, samples=256, what="calibration data and samples (lava)")
    _exporting(export)

    verify = command(
        "verify", "read a file back, replay it, compare every spike; exit code 4 if they differ"
    )
    verify.add_argument("file", help="an .h5, .nir or .net file")
    verify.add_argument(
        "--network", metavar="FILE.h5", help="the network that the file was written from"
    )
    _data(verify, required=False, samples=8)
    verify.add_argument(
        "--time-steps", type=count, metavar="T", help="T; default: that of the file"
    )
    verify.add_argument("--format", choices=FORMATS.names(), help="default: by the suffix")
    verify.add_argument("--python", metavar="PATH", help="a Python interpreter with Lava")
    verify.add_argument(
        "--embed", action=argparse.BooleanOptionalAction, default=False,
        help="write the certificate into the file",
    )  # fmt: skip
    _output(verify, "the certificate as JSON", required=False)

    energy = command(
        "energy", "count operations and estimate energy, compared with the source network"
    )
    _network(energy)
    _data(energy, samples=32)
    _steps(energy)
    energy.add_argument("--table", action=Collect, metavar="NAME", help="energy table; repeatable")

    bench = command(
        "bench", "measure the time per image and step, compared with the source network"
    )
    _network(bench)
    _data(bench, samples=32)
    _reference(bench)
    bench.add_argument(
        "--time-steps", type=count, metavar="T", help="T; default: that of the network"
    )
    bench.add_argument("--repeats", type=count, default=5, metavar="N", help="number of timed runs")
    _simulator(bench)

    report = command("report", "write one HTML report with all of this")
    _network(report)
    _data(report, samples=256)
    _reference(report)
    _steps(report)
    report.add_argument(
        "--certificate", action=Collect, nargs="+", metavar="FILE",
        help="a certificate of verify -o, or an exported file to verify",
    )  # fmt: skip
    _output(report, "the file, .html")

    for one in commands.values():
        _common(one)
    return parser, commands


def _common(command: Parser) -> None:
    group = command.add_argument_group("options of every command")
    group.add_argument("--json", action="store_true", help="one JSON document on standard output")
    group.add_argument("--quiet", action="store_true", help="only errors, and --json")
    group.add_argument("--threads", type=count, metavar="N", help="of torch")
    group.add_argument("--seed", type=seed, default=0, metavar="N")
    group.add_argument(
        "--config",
        metavar="FILE.toml",
        help="read options by name; the command line takes precedence",
    )


def _model(command: Parser) -> None:
    command.add_argument("model", help=MODEL)
    command.add_argument("--weights", metavar="FILE.safetensors", help="weights of the model")


def _network(command: Parser) -> None:
    command.add_argument("network", help=NETWORK)


def _simulator(command: Parser) -> None:
    command.add_argument("--simulator", choices=SIMULATORS.names(), default="spikingjelly")
    # its name before; goes with the next release
    command.add_argument("--backend", choices=SIMULATORS.names(), help=argparse.SUPPRESS)


def _reference(command: Parser) -> None:
    command.add_argument(
        "--reference", metavar="MODEL",
        help=f"the source model; default: the one stored in the network's file: {MODEL}",
    )  # fmt: skip
    command.add_argument("--weights", metavar="FILE.safetensors", help="weights of --reference")


def _steps(command: Parser) -> None:
    command.add_argument(
        "--time-steps", type=count, nargs="+", metavar="T",
        help="default: powers of two up to the T of the network, and that T",
    )  # fmt: skip


def _output(command: Parser, what: str, required: bool = True) -> None:
    command.add_argument(
        "-o", "--output", required=required, metavar="FILE",
        help=f"{what}; an existing file is replaced",
    )  # fmt: skip


def _data(
    command: Parser,
    required: bool = True,
    samples: int | None = None,
    what: str = "data",
    group: Any = None,
) -> None:
    (group or command).add_argument(
        "--data", required=required and group is None, metavar="DATA", help=f"{what}: {DATA}"
    )
    more = command.add_argument_group("options of --data")
    more.add_argument("--labels", metavar="FILE", help="class indices: .npy, .npz:name or IDX")
    more.add_argument(
        "--samples", type=count, default=samples, metavar="N",
        help=f"number of samples, drawn with --seed; default: {samples or 'all'}",
    )  # fmt: skip
    more.add_argument("--limit", type=count, metavar="N", help="use only the first N samples")
    more.add_argument(
        "--split",
        metavar="NAME",
        help="split of a library's data set, or a subfolder: validation, train",
    )
    more.add_argument(
        "--download", action="store_true", help="allow a library to download missing data"
    )
    more.add_argument(
        "--workers", type=none_or_more, default=0, metavar="N", help="number of loader processes"
    )
    more.add_argument(
        "--skip-bad", type=none_or_more, default=0, metavar="N",
        help="skip at most so many unreadable images",
    )  # fmt: skip
    more.add_argument(
        "--preprocess", metavar="MODEL",
        help="preprocess images or texts as in the training of MODEL: torchvision:NAME[:WEIGHTS], "
        "timm:NAME, hf:NAME",
    )  # fmt: skip
    more.add_argument(
        "--tokens", type=count, metavar="N", help="truncate and pad texts to N tokens"
    )  # fmt: skip
    more.add_argument("--scale-pixels", action="store_true", help="divide integers 0..255 by 255")
    more.add_argument(
        "--mean", type=number, nargs="+", metavar="M", help="mean to subtract, one per channel"
    )
    more.add_argument(
        "--std", type=positive, nargs="+", metavar="S", help="then divide by these, one per channel"
    )
    more.add_argument("--resize", type=count, nargs=2, metavar=("HEIGHT", "WIDTH"), help="images")
    more.add_argument(
        "--channels", type=int, choices=(1, 3), help="convert images to grey, or to three channels"
    )


def _search(command: Parser) -> None:
    goals = command.add_argument_group("the budget or target (one of these)")
    goal = goals.add_mutually_exclusive_group(required=True)
    goal.add_argument("--spikes", type=budget, metavar="N", help="budget: mean spikes per neuron")
    goal.add_argument(
        "--additions", type=positive, metavar="A",
        help="budget: additions per multiply-accumulate of the source",
    )  # fmt: skip
    goal.add_argument(
        "--agreement", type=fraction, metavar="FRACTION",
        help="target: agreement with the source, with the fewest additions",
    )  # fmt: skip
    command.add_argument(
        "--methods", nargs="+", choices=("signgd", "group"), metavar="NAME",
        help="signgd, or signgd group to choose for each layer; default: signgd",
    )  # fmt: skip
    command.add_argument("--iterations", type=count, metavar="N", help="iterations of each tuning")
    _dead_zone(command)
    _planning(command)


def _fine_tuning(command: Parser) -> None:
    command.add_argument(
        "--additions", type=positive, metavar="A",
        help="budget: additions per multiply-accumulate of the source",
    )  # fmt: skip
    command.add_argument("--epochs", type=count, metavar="N", help="default: 3")
    command.add_argument("--seconds", type=positive, metavar="S", help="time limit for all epochs")
    command.add_argument(
        "--lr", type=positive, metavar="RATE", help="largest learning rate; default: 1e-3"
    )
    command.add_argument("--batch-size", type=count, metavar="N", help="default: 64")
    command.add_argument(
        "--distill", type=number, metavar="K", help="weight of the distillation loss; default: 1"
    )
    outputs = command.add_mutually_exclusive_group()
    outputs.add_argument(
        "--temperature",
        type=positive,
        metavar="T",
        help="temperature of the distillation loss; default: 2",
    )
    outputs.add_argument(
        "--no-classes",
        action="store_true",
        help="the outputs are not classes: use their squared distance",
    )
    command.add_argument(
        "--amp", action="store_true", default=None, help="compute linear operations in bfloat16"
    )
    command.add_argument(
        "--resume",
        metavar="FILE",
        help="written after each epoch; training resumes from it if it exists",
    )
    command.add_argument(
        "--validation", metavar="DATA",
        help="held-out data, prepared like --data; default: a tenth of --data",
    )  # fmt: skip
    command.add_argument("--validation-labels", metavar="FILE", help="labels of --validation")


def _conversion(command: Parser) -> None:
    command.add_argument(
        "--size", action=Collect, type=shape, dest="sizes", metavar="3x96x80",
        help="another sample shape to support, checked against the model; repeatable",
    )  # fmt: skip
    command.add_argument(
        "--method", action=Collect, metavar="[PATH=]NAME",
        help="signgd, group or subgradient; also by module path; repeatable",
    )  # fmt: skip
    command.add_argument(
        "--time-steps", type=count, metavar="T", help="T; default: that of the plan"
    )
    command.add_argument(
        "--members",
        action=Collect,
        metavar="[PATH=]M",
        help="members of a group neuron, or signs per step",
    )
    command.add_argument("--signed", action=argparse.BooleanOptionalAction, help="negative spikes")
    _dead_zone(command)
    command.add_argument("--preset", choices=("default", "paper"))
    command.add_argument(
        "--tune",
        action=argparse.BooleanOptionalAction,
        help="tune on the calibration data; default: if possible",
    )
    command.add_argument("--tune-seconds", type=positive, metavar="S", help="time limit of tuning")
    command.add_argument(
        "--objective", type=objective, metavar="OBJECTIVE",
        help="objective of tuning: error, additions, or their weight",
    )  # fmt: skip
    command.add_argument("--momentum", type=number, metavar="BETA")
    _streams(command)
    _planning(command)


def _streams(command: Parser) -> None:
    group = command.add_argument_group("plans for streams, with the state kept between frames")
    group.add_argument(
        "--stream", action="store_true", help="--data are clips [F, N, ...], F frames of N streams"
    )
    group.add_argument(
        "--motion", type=number, metavar="PIXELS",
        help="--data are stills that move so far per frame",
    )  # fmt: skip
    group.add_argument(
        "--noise", type=number, metavar="STD", help="sensor noise at which neurons stay silent"
    )


def _dead_zone(command: Parser) -> None:
    command.add_argument(
        "--dead-zone", action=Collect, metavar="[PATH=]THETA",
        help="fraction of the step size in [0, 1); 0: a sign at every step",
    )  # fmt: skip


def _planning(command: Parser) -> None:
    command.add_argument(
        "--keep", action=Collect, nargs="+", metavar="PATH", help="modules that stay real-valued"
    )
    command.add_argument("--scale", choices=("fitted", "channel", "tensor", "published", "unit"))
    command.add_argument("--resting", choices=("zero", "mean"))
    command.add_argument("--forms", "--functions", choices=("whole", "local"))
    command.add_argument("--input-coding", choices=("exact", "real", "spike", "poisson"))
    command.add_argument("--input-scale", type=positive, metavar="A")


def _exporting(command: Parser) -> None:
    command.add_argument("--format", choices=FORMATS.names(), help="default: by the suffix")
    command.add_argument(
        "--time-steps", type=count, metavar="T", help="T; default: that of the network"
    )
    nir = command.add_argument_group("options of NIR files")
    nir.add_argument("--mode", choices=("exact", "platform"))
    nir.add_argument("--dialect", choices=("nir", "legacy", "lif"))
    nir.add_argument("--pooling", choices=("pool", "conv"))
    nir.add_argument("--reader", metavar="TOOL", help="nir, norse, spikingjelly, snntorch, sinabs")
    nir.add_argument("--strict", action="store_true", default=None, help="refuse any loss")
    lava = command.add_argument_group("options of Lava files")
    lava.add_argument("--profile", choices=("group", "if-soft", "if-hard", "group-graded"))
    lava.add_argument("--weight-bits", type=count, metavar="BITS")
    lava.add_argument("--input-levels", type=count, metavar="N")
    lava.add_argument("--input-range", type=number, nargs=2, metavar=("LOW", "HIGH"))
    lava.add_argument("--max-weights", type=count, metavar="N")


def count(text: str) -> int:
    value = _of(int, text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"a number of at least 1 belongs here, not {value}")
    return value


def none_or_more(text: str) -> int:
    value = _of(int, text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"a number from 0 on belongs here, not {value}")
    return value


def budget(text: str) -> float:
    """A positive number, whole where it can be, as neurons without dead zones need it."""
    value = positive(text)
    return int(value) if value.is_integer() else value


def objective(text: str) -> str | float:
    """A name, which ``convert`` knows, or a weight."""
    return text if text.isalpha() else number(text)


def seed(text: str) -> int:
    value = _of(int, text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"a seed is a number from 0 to 2^63 - 1, not {value}")
    return value


def number(text: str) -> float:
    value = _of(float, text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"a finite number belongs here, not {text}")
    return value


def positive(text: str) -> float:
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"a positive number belongs here, not {text}")
    return value


def fraction(text: str) -> float:
    value = number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a fraction from 0 to 1 belongs here, not {text}")
    return value


def shape(text: str) -> tuple[int, ...]:
    """``3x96x80``."""
    return tuple(count(size) for size in text.split("x"))


def _of(kind: Callable[[str], Any], text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number belongs here, not {text!r}") from None


# -- what does not go together --------------------------------------------------------------------


def _check_input(command: Parser, options: argparse.Namespace) -> None:
    """Options that say something of data that are not there are a misunderstanding."""
    if getattr(options, "data", None) is not None:
        return
    given = {
        "--labels": options.labels,
        "--preprocess": options.preprocess,
        "--tokens": options.tokens,
        "--scale-pixels": options.scale_pixels or None,
        "--mean": options.mean,
        "--std": options.std,
        "--resize": options.resize,
        "--channels": options.channels,
        "--limit": options.limit,
        "--split": options.split,
        "--download": options.download or None,
        "--workers": options.workers or None,
        "--skip-bad": options.skip_bad or None,
    }
    for name, value in given.items():
        if value is not None:
            command.error(f"{name} is of --data, which is not given")


def _check_reference(command: Parser, options: argparse.Namespace) -> None:
    if options.weights is not None and options.reference is None:
        command.error("--weights is of --reference, which is not given")


def _check_doctor(command: Parser, options: argparse.Namespace) -> None:
    _check_reference(command, options)
    if options.apply != (options.output is not None):
        command.error("--apply writes to -o FILE.h5: give both, or none of them")


def _check_convert(command: Parser, options: argparse.Namespace) -> None:
    if not options.stream and (options.motion is not None or options.noise is not None):
        command.error("--motion and --noise are of --stream, which is not given")


def _check_fine_tune(command: Parser, options: argparse.Namespace) -> None:
    if options.validation_labels is not None and options.validation is None:
        command.error("--validation-labels is of --validation, which is not given")


CHECKS: dict[str, Callable[[Parser, argparse.Namespace], None]] = {
    "check": _check_input,
    "convert": _check_convert,
    "export": _check_input,
    "verify": _check_input,
    "evaluate": _check_reference,
    "bench": _check_reference,
    "report": _check_reference,
    "doctor": _check_doctor,
    "fine-tune": _check_fine_tune,
}


# -- the TOML file --------------------------------------------------------------------------------


def _config_file(arguments: Sequence[str]) -> str | None:
    found = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    found.add_argument("--config", nargs="?")
    try:
        return found.parse_known_args(list(arguments))[0].config  # type: ignore[no-any-return]
    except (argparse.ArgumentError, SystemExit):
        return None


def _configure(command: Parser, name: str, file: str, names: set[str]) -> None:
    """The values of a TOML file as defaults of the command: its own keys, and those of [name]."""
    try:
        with open(file, "rb") as opened:
            table = tomllib.load(opened)
    except OSError as error:
        command.error(f"--config: cannot read '{file}': {error.strerror or error}")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        command.error(f"--config: '{file}' is not TOML: {error}")
    values = {key: value for key, value in table.items() if key not in names}
    own = table.get(name, {})
    if not isinstance(own, dict):
        command.error(f"--config: '{name}' in '{file}' is a table of options, [{name}]")
    actions = {
        action.dest: action for action in command._actions if action.dest not in ("help", "config")
    }
    for key, value in {**values, **own}.items():
        action = actions.get(key.replace("-", "_"))
        if action is None:
            command.error(
                f"--config: {name} has no option {key!r} ('{file}'); known: "
                f"{', '.join(sorted(dest.replace('_', '-') for dest in actions))}"
            )
        action.default = _value(command, action, key, value, file)
        action.required = False
        if not action.option_strings:
            action.nargs = "?"
        for group in command._mutually_exclusive_groups:
            if action in group._group_actions:
                group.required = False


def _value(command: Parser, action: argparse.Action, key: str, value: Any, file: str) -> Any:
    where = f"--config: {key} in '{file}'"
    if action.nargs == 0:  # true or false
        if not isinstance(value, bool):
            command.error(f"{where} is true or false, not {value!r}")
        return value
    several = action.nargs in ("+", 2) or isinstance(action, Collect)
    items = value if isinstance(value, list) and several else [value]
    if isinstance(action.nargs, int) and len(items) != action.nargs:
        command.error(f"{where} is {action.nargs} values, not {value!r}")
    found = []
    for item in items:
        if isinstance(item, bool) or not isinstance(item, (str, int, float)):
            command.error(f"{where} cannot be {item!r}")
        try:
            item = action.type(str(item)) if callable(action.type) else item
        except (argparse.ArgumentTypeError, ValueError) as error:
            command.error(f"{where}: {error}")
        if not callable(action.type):
            item = str(item)
        if action.choices is not None and item not in action.choices:
            known = ", ".join(map(str, action.choices))
            command.error(f"{where} is one of {known}, not {item!r}")
        found.append(item)
    return found if several else found[0]
