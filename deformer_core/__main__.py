"""`python -m deformer_core` is the `deformer` command."""

import sys

from deformer_core.cli import main

sys.exit(main())
