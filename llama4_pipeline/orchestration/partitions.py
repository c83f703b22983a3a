"""One partition per model of the catalog, shared by every asset."""

import dagster as dg

from llama4_pipeline.catalog import load_catalog

MODELS = dg.StaticPartitionsDefinition(list(load_catalog()))
