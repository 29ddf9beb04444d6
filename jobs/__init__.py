"""Running the pipeline: what is missing, where it runs, how it stands. Starts without torch."""
