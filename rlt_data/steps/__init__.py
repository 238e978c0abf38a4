"""The steps of the pipeline, one module each: what is read, what is added beside it, and nothing else."""
