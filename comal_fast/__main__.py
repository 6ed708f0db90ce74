"""`python -m comal_fast` is `comal-fast`."""

import sys

from comal_fast.cli import main

sys.exit(main())
