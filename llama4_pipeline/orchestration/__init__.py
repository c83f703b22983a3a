"""How the stages run under Dagster: partitions, resources, jobs, schedules, and the bridge to the store."""
