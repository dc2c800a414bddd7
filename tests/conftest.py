"""Set up before `fedloom` is imported: shapes are checked at run time, and the network is never asked."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from jaxtyping import install_import_hook

install_import_hook("fedloom", "beartype.beartype")
