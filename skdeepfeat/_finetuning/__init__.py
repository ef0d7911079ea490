"""FineTunedClassifier: trains a new head and the top of a pretrained network.

- ``classifier``: the estimator
- ``labels``, ``data``: labels and decoded images of one fit
- ``parts``: a frozen trunk, a tail that is tuned, and a new head
- ``training``, ``phases``, ``frozen``, ``monitoring``: fit → phase → epoch → step
- ``augmentation``, ``scratch``: random changes, and arrays larger than memory
"""
