"""`python -m llama4_pipeline.cli`, the same as the program `llama4-pipeline`."""

import sys

from llama4_pipeline.cli import main

sys.exit(main())
