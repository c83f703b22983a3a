"""Models larger than memory, measured under a hard limit: `make large`."""
