"""Names of files that one stage writes and another reads."""

CALIBRATION = "calibration.jsonl"
"""Of the data sets, the text that calibrates."""
JUDGED_ON = {name: f"{name}.jsonl" for name in ("validation", "summarise", "classify")}
"""Of the data sets, those that tell quality."""
SENSITIVITY = "sensitivity.json"
"""Of a quantized graph, what a method that looks at sensitivities measured."""
METHODS_COMPARED = "methods.json"
"""Of the trade-off, the figures of each method."""
MEASUREMENTS = "measurements.json"
"""Of a measurement, its rows and the day."""
