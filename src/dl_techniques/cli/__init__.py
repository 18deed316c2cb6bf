"""The `convunext` command: one subcommand, one public function."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from dl_techniques import __version__
from dl_techniques.cli.backend import Backend, choose_backend, prepare_engine
from dl_techniques.cli.terminal import terminal
from dl_techniques.cli.training import naming_the_resume, plan, planned_settings, train
from dl_techniques.engines.formats import EngineName
from dl_techniques.errors import ConvUNextError, ExportError
from dl_techniques.export.settings import ExportOptions
from dl_techniques.inference.settings import DenoisingOptions, PredictionOptions
from dl_techniques.page.settings import PageOptions
from dl_techniques.training.demo import DemoConfig

FAILED, USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143


class PartialFailure(Exception):
    """Part of the work failed; the messages are printed already."""


app = App(
    name="convunext",
    version=__version__,
    help="A modern U-Net of ConvNeXt blocks in Keras 3. Start with `convunext demo`.",
    help_format="markdown",
    default_parameter=Parameter(negative_iterable=()),
    suppress_keyboard_interrupt=False,  # `main` says what happened
)


@app.command
def demo(
    config: Annotated[DemoConfig, Parameter(name="*")] = DemoConfig(),  # noqa: B008 - frozen
    *,
    backend: Backend = None,
) -> None:
    """Train a small model on real microscopy images and show its predictions.

    Takes a few minutes on two cores and needs no network. Writes an inference model, a log and an HTML report with
    image, truth, prediction and error side by side; the report's path is the last line printed.

    Args:
        config: Settings of the run.
        backend: Backend of Keras (default: KERAS_BACKEND, otherwise TensorFlow).
    """
    choose_backend(backend)
    from dl_techniques.training.demo import run_demo

    settings = config.run_settings()
    with naming_the_resume(settings.output):
        print(run_demo(settings, terminal()).report)


@app.command
def denoise(
    inputs: Annotated[list[str], Parameter(consume_multiple=True)],
    /,
    *,
    options: Annotated[DenoisingOptions, Parameter(name="*")],
    backend: Backend = None,
) -> None:
    """Remove white Gaussian noise of unknown level from images: grey or colour, 8 or 16 bits or floats, any size.

    No settings are needed: the model is blind to the level of the noise and to the unit of the intensities. Type,
    depth, alpha and colour profile are preserved. Unreadable images are listed and the others processed; the exit
    status is then 1.

    Args:
        inputs: Image files, folders of them and quoted patterns.
        options: Settings.
        backend: Backend of Keras (default: KERAS_BACKEND, otherwise TensorFlow).
    """
    from dl_techniques.inference.denoising_presets import DenoisingPredictors, presets_for

    names = [options.model] if options.model else presets_for(inputs)
    models = {name: prepare_engine(name, backend, options.engine, options.precision) for name in names}
    from dl_techniques.inference.files import predict_files

    _report(predict_files(DenoisingPredictors(options, models), inputs, options, terminal()))


@app.command
def predict(
    model: str,
    inputs: Annotated[list[str], Parameter(consume_multiple=True)],
    /,
    *,
    options: Annotated[PredictionOptions, Parameter(name="*")],
    ray: Annotated[list[str] | None, Parameter(consume_multiple=(0, 1))] = None,
    backend: Backend = None,
) -> None:
    """Apply a trained model to images: masks from a segmenter, restored images from a denoiser or restorer.

    Takes images of any size, 8 or 16 bits or floats, and TIFF stacks page by page. Images too large for --max-memory
    are computed in tiles, with the same result. Existing results are skipped, so an interrupted command resumes.
    Unreadable images are listed and the others processed; the exit status is then 1.

    Args:
        model: A `.keras` file, a run's folder, a preset's name or folder, or an export.
        inputs: Image files, folders of them and quoted patterns; with --ray also addresses such as s3://bucket/folder/.
        options: Settings.
        ray: Distribute the images over all cores or GPUs of this machine, or of the Ray cluster at this address
            (HOST:PORT, or auto), and write the state of each image to status.parquet beside the results.
        backend: Backend of Keras (default: KERAS_BACKEND, otherwise TensorFlow).
    """
    if ray is not None:
        _predict_bulk(model, inputs, options, backend, *ray)
        return
    selection = prepare_engine(model, backend, options.engine, options.precision)
    from dl_techniques.inference.files import create_predictor, predict_files

    predictor = create_predictor(selection, options)
    _report(predict_files(lambda _: predictor, inputs, options, terminal()))


def _predict_bulk(
    model: str, inputs: list[str], options: PredictionOptions, backend: Backend, address: str | None = None
) -> None:
    from dl_techniques.bulk.cluster import require_ray

    require_ray()  # before the model is looked at
    selection = prepare_engine(model, backend, options.engine, options.precision)
    from dl_techniques.bulk.running import predict_bulk

    outcome = predict_bulk(selection, inputs, options, terminal(), address)
    if outcome.refused:
        raise PartialFailure(f"{outcome.refused} of {outcome.total} images refused")


def _report(results: Sequence) -> None:
    refused = sum(bool(result.error) for result in results)
    if refused:
        raise PartialFailure(f"{refused} of {len(results)} images refused")


@app.command(name="certify")
def certify_model(model: str, /, *, save: bool = True, backend: Backend = None) -> None:
    """Measure the error of f(a·x) = a·f(x), a from 0.001 to 1000, at several sizes; write it into the model's card.

    The exit status is 1 if the error exceeds the limit.

    Args:
        model: A `.keras` file, a preset's name or folder, or an export.
        save: Write the certificate into the model's card (never for presets that ship with the package).
        backend: Backend of Keras (default: KERAS_BACKEND, otherwise TensorFlow).
    """
    selection = prepare_engine(model, backend)
    from dl_techniques.engines.loading import load_engine
    from dl_techniques.export.certify import certify, print_certificate, save_certificate
    from dl_techniques.models.convunext.presets import SHIPPED

    engine = load_engine(selection)
    certificate = certify(engine)
    print_certificate(certificate, engine, terminal())
    if save and engine.path.parent != SHIPPED:
        print(f"written to the card: {save_certificate(certificate, engine)}")
    if not certificate.holds:
        raise PartialFailure(f"{engine.source}: f(a*x) = a*f(x) does not hold to {certificate.limit:g}")


@app.command(name="evaluate")
def evaluate_model(
    model: str,
    /,
    *,
    images: str,
    targets: Annotated[str | None, Parameter(name=("--targets", "--masks"))] = None,
    output: Annotated[Path, Parameter(name=("--output", "-o"))],
    max_memory: str = "2GB",
    engine: EngineName = "auto",
    backend: Backend = None,
) -> None:
    """Measure a model on images with known truth: scores, tables, the best and the worst images.

    For a segmenter: Dice and IoU of each class, confusion matrix, calibration. For a denoiser or restorer: PSNR and
    SSIM before and after. Writes metrics.json, metrics.csv and report.html, whose path is the last line printed.

    Args:
        model: A `.keras` file, a run's folder, a preset's name or folder, or an export.
        images: Folder of images or a quoted pattern; or a CSV file with columns image and target.
        targets: Folder or pattern of the masks, or of the target images.
        output: Folder to write to; it must not exist.
        max_memory: Memory limit of the network; larger images are computed in tiles.
        engine: Engine: `keras`, `openvino`, `onnxruntime`, or `auto`, the fastest that is installed.
        backend: Backend of Keras (default: KERAS_BACKEND, otherwise TensorFlow).
    """
    selection = prepare_engine(model, backend, engine)
    from dl_techniques.card import read_card
    from dl_techniques.engines.loading import load_engine
    from dl_techniques.inference.evaluation import evaluate_files

    loaded = load_engine(selection)
    console = terminal()
    card = read_card(loaded.path)
    print(evaluate_files(loaded, card, images, targets, output, console, max_memory).resolve())


@app.command
def export(model: str, /, *, options: Annotated[ExportOptions, Parameter(name="*")]) -> None:
    """Export a model to ONNX, OpenVINO, SavedModel or LiteRT and compare its outputs with Keras.

    Runs on TensorFlow, whatever backend the model was trained on. If the outputs differ from Keras, nothing is written
    and the exit status is 1. The artifact's path is the last line printed.

    Args:
        model: A `.keras` file, a preset's name or folder.
        options: Settings.
    """
    choose_backend("tensorflow")
    from dl_techniques.export.export import export_model

    try:
        artifact = export_model(model, options, terminal())
    except ExportError as error:
        raise PartialFailure(str(error)) from error
    print(artifact.path.resolve())


@app.command
def page(
    models: Annotated[list[str], Parameter(consume_multiple=True)],
    /,
    *,
    options: Annotated[PageOptions, Parameter(name="*")] = PageOptions(),  # noqa: B008 - frozen
    backend: Backend = None,
) -> None:
    """Serve a web page on this machine: drop an image, look at the model's result, download it.

    No data leaves the machine, and no other machine can open the page unless --host allows it. Ctrl-C stops it.

    Args:
        models: `.keras` files, folders of runs, presets' names or folders, or exports.
        options: Settings.
        backend: Backend of Keras (default: KERAS_BACKEND, otherwise TensorFlow).
    """
    selections = [prepare_engine(model, backend, options.engine) for model in models]
    from dl_techniques.page.serving import serve_page

    serve_page(selections, options)


app.command(plan)
app.command(train)


def _terminate(*_: object) -> None:
    sys.exit(TERMINATED)  # unwinds, so that temporary files go


def main(tokens: list[str] | None = None) -> int:
    """Run the command line and return the exit status: 0 done, 1 partly, 2 refused, 130 interrupted, 143 terminated."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app.config = planned_settings(sys.argv[1:] if tokens is None else tokens)
        app(tokens, exit_on_error=False, print_error=True, result_action="return_value")
    except CycloptsError:
        return USAGE
    except ConvUNextError as error:
        print(f"convunext: {error}", file=sys.stderr)
        return USAGE
    except PartialFailure as failure:
        print(f"convunext: {failure}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("convunext: interrupted.", file=sys.stderr)
        return INTERRUPTED
    return 0
