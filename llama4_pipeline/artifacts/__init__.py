"""The content-addressed store of artifacts: what was made, from what, and whether it still stands.

Import from the modules: `store` (Store, Artifact), `recipe` (Recipe), `manifest` (Manifest), `code_version`.
Nothing is re-exported here, because the code version of a stage covers every package it passes through.
"""
