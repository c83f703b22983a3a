"""What is measured of an engine: speed, memory, and the quality of what it says."""
