"""The stages as Dagster assets, one file a stage; what they do stands in `builders`, what they are in `stages`."""
