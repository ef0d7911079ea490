"""FineTunedClassifier: its data, the parts of its network, and its training."""
