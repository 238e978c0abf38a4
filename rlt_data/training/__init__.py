"""Training over TRL: what a data set is made into, and how a training is begun, continued and described."""
