"""`python -m dl_techniques.cli` is `convunext`."""

import sys

from dl_techniques.cli import main

sys.exit(main())
