"""The verbs of the pipeline: each module is a command, `python -m pipelines.VERB`."""

import gc
import sys

if sys.argv[0] == "-m":  # until Python has found the verb's module: this process runs it
    gc.disable()  # for its imports (components/imports.py); cli.run collects again
