"""What each stage does: one function a stage, from the directories of its inputs to the directory of its
artifact.

Every function here has the same form, build(inputs, parameters, out) -> facts. It sees nothing of the model
but its parameters, so whatever shapes the artifact is in its key. Nothing here imports Dagster, and nothing
imports the store: a change of either rebuilds nothing.
"""
