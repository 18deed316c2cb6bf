"""A page in a process of its own, as users have it; Gradio leaves event loops open, which the tests would report.

Run by test_page.py: `page_server.py GO MODEL…` prints the address and ends with its input. The first model is there
once more, as one that waits until the file GO exists.
"""

import sys
import time
from pathlib import Path

from dl_techniques.inference.predictor import Predictor
from dl_techniques.page.serving import running_page
from dl_techniques.page.settings import PageOptions

ARRIVAL = 5.0
OPTIONS = PageOptions(max_megabytes=1, max_pixels=4000, queue=2)


class Slow(Predictor):
    """A model that takes as long as it is told to."""

    def __call__(self, *arguments):
        end = time.monotonic() + 600
        while not Path(sys.argv[1]).exists() and time.monotonic() < end:
            time.sleep(0.05)
        return super().__call__(*arguments)


if __name__ == "__main__":
    predictors = [*map(Predictor, sys.argv[2:]), Slow(sys.argv[2])]
    with running_page(predictors, OPTIONS, arrival=ARRIVAL) as url:
        print(url, flush=True)
        sys.stdin.read()
