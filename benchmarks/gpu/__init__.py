"""Measure the transformers engine on one GPU, with random models and without a network.

``bundle`` collects the project and a few small wheels for a machine that has only PyTorch and Transformers, and
``__main__`` runs the sections there. Reading order: ``models`` (models, texts, prompts), ``device`` (time and memory),
``bench`` (what the sections share), then the sections in ``scoring``, ``generation`` and ``loading``.
"""
