"""What was measured, shown to people: the benchmark table, its plots, and one page with both."""
