"""The page itself: what is on it, and the server that shows it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dl_techniques.engines.selection import Model
from dl_techniques.errors import ArgumentError, ConvUNextError, pip_install
from dl_techniques.images.formats import format_of
from dl_techniques.inference.predictor import Predictor
from dl_techniques.page.applying import apply_model
from dl_techniques.page.settings import LOOPBACK, PageOptions
from dl_techniques.page.showing import describe_model, describe_refusal, describe_result

if TYPE_CHECKING:
    import gradio

ARRIVAL = 60.0  # seconds in which a request must be here
SWEEP, KEPT = 600, 3600  # seconds between looks for old files, and how old they may become
TITLE = "ConvUNext"
STYLE = """
.gradio-container, .gradio-container .main {width: 100% !important; max-width: 1180px !important; margin: 0 auto}
.facts table {width: 100%; border-collapse: collapse; font-size: 0.9rem}
.facts table, .facts tr, .facts td {border: none !important}
.facts td {padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--border-color-primary) !important; vertical-align: top}
.facts td:first-child {color: var(--body-text-color-subdued); white-space: nowrap; width: 1%}
.facts i {display: inline-block; width: 0.9em; height: 0.9em; border-radius: 2px; margin-right: 0.5em}
.facts p {margin: 0.6rem 0; padding: 0.5rem 0.8rem; border-left: 3px solid #d55e00; background: #d55e0018}
"""


def serve_page(models: Sequence[Model], options: PageOptions) -> None:
    """Load models and show the page until the process is stopped.

    Args:
        models: As `Predictor` takes them.
        options: Settings.

    Raises:
        FileError: A model is broken, or its card does not tell what it is for.
        ArgumentError: There is no such model, or the port is taken.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ConvUNextError(
            "page", "needs the module 'gradio', which is not installed.", f"Install it: {pip_install('page')}"
        )
    settings: dict[str, Any] = {"max_memory": options.max_memory, "engine": options.engine, "trust": options.trust}
    predictors = [Predictor(model, **settings) for model in models]
    with running_page(predictors, options) as url:
        print(f"{url} shows {', '.join(p.engine.source for p in predictors)}; Ctrl-C stops it", flush=True)
        print(options.reach, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


@contextlib.contextmanager
def running_page(predictors: Sequence[Predictor], options: PageOptions, arrival: float = ARRIVAL) -> Iterator[str]:
    """Serve the page from a thread and yield its address; requests must arrive in `arrival` seconds."""
    with tempfile.TemporaryDirectory(prefix="convunext-page-") as name:
        folder = Path(name).resolve()
        (folder / "results").mkdir()
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        from dl_techniques.page.gate import Gate

        page = _page(predictors, options, folder / "results")
        # A page of another site must not reach this one by a name that it makes point here.
        hosts = [*LOOPBACK, "[::1]"] if options.host in LOOPBACK else ["*"]
        largest = options.max_megabytes * 1_000_000
        gates = [
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts),
            Middleware(Gate, folder=folder, largest_file=largest, seconds=arrival),
        ]
        try:
            _, url, _ = page.launch(
                server_name=options.host,
                server_port=options.port,
                max_file_size=largest,
                app_kwargs={"middleware": gates, "docs_url": None, "redoc_url": None, "openapi_url": None},
                css=STYLE,
                theme=_theme(),
                prevent_thread_lock=True,
                share=False,
                quiet=True,
                show_error=True,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                mcp_server=False,
                ssr_mode=False,
                pwa=False,
            )
        except OSError as error:
            raise ArgumentError("port", f"must be free at {options.host}", options.port) from error
        try:
            yield url
        finally:
            page.close(verbose=False)


def _names(predictors: Sequence[Predictor]) -> list[str]:
    """Return what models are called on the page: their files' names, with their paths where two are the same."""
    names = [predictor.engine.source for predictor in predictors]
    paths = [str(predictor.engine.path) for predictor in predictors]
    return [path if names.count(name) > 1 else name for name, path in zip(names, paths, strict=True)]


def _theme() -> Any:
    from gradio.themes import Default

    fonts = ("system-ui", "sans-serif")
    return Default(primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=("monospace",))


def _page(predictors: Sequence[Predictor], options: PageOptions, folder: Path) -> gradio.Blocks:
    import gradio

    def nothing(facts: str) -> list[Any]:
        return [None, facts, gradio.update(value=None, interactive=False)]

    def apply(source: str, model: int, progress: gradio.Progress) -> tuple[bool, list[Any]]:
        """Return whether the image was not refused, and what slider, facts and download show."""
        path, target = Path(source), Path(tempfile.mkdtemp(dir=folder))
        try:
            shown = apply_model(
                predictors[model], path, target, options.max_pixels, lambda done, total: progress((done, total))
            )
        except ConvUNextError as error:
            return False, nothing(describe_refusal(f"{path.name}: {error.reason} {error.remedy}"))
        download = gradio.update(value=shown.download, interactive=True)
        return True, [(shown.before, shown.after), describe_result(shown), download]

    def open_image(file: dict, model: int, progress=gradio.Progress()) -> list[Any]:  # noqa: B008 - Gradio's way
        named = isinstance(file, dict) and isinstance(file.get("path"), str)
        if not named or model not in range(len(predictors)):
            rule = f"A call must name an uploaded file and the number of a model, 0 to {len(predictors) - 1}."
            raise gradio.Error(rule, print_exception=False)
        source = file["path"]
        done, results = apply(source, model, progress)
        if not done:
            return [None, None, *results]
        row = format_of(Path(source))
        shown = row is not None and row.browser
        return [source, gradio.skip() if shown else results[0][0], *results]

    def change_model(source: str | None, model: int, progress=gradio.Progress()) -> list[Any]:  # noqa: B008
        return nothing(describe_model(predictors[model])) if source is None else apply(source, model, progress)[1]

    def clear(model: int) -> list[Any]:
        return [None, *nothing(describe_model(predictors[model]))]

    with gradio.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(SWEEP, KEPT)) as page:
        gradio.Markdown(f"# {TITLE}")
        source = gradio.State(None)
        with gradio.Row():
            with gradio.Column(scale=2, min_width=320):
                dropped = gradio.Image(
                    label="Image", sources=["upload", "clipboard"], type="filepath", height=300, buttons=[]
                )
                choices = [(name, index) for index, name in enumerate(_names(predictors))]
                model = gradio.Dropdown(choices, value=0, label="Model", visible=len(choices) > 1)  # type: ignore[arg-type]
                facts = gradio.HTML(describe_model(predictors[0]), elem_classes="facts")
            with gradio.Column(scale=3, min_width=320):
                slider = gradio.ImageSlider(
                    label="Before and after", format="png", interactive=False, max_height=640, buttons=["fullscreen"]
                )
                download = gradio.DownloadButton("Download the result", interactive=False, variant="primary")
        results: list[Any] = [slider, facts, download]
        common: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "trigger_mode": "once"}
        dropped.upload(
            open_image, [dropped, model], [source, dropped, *results], preprocess=False, api_name="apply", **common
        )
        model.input(change_model, [source, model], results, api_visibility="private", **common)
        dropped.clear(clear, [model], [source, *results], api_visibility="private", **common)
    return page.queue(max_size=options.queue, api_open=False)
