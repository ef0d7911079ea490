"""FineTunedClassifier: its data and labels, the parts of its network, its training."""
