"""Transfer: compare the traces of a teacher trained in another domain with direct RL and a transferred student."""
