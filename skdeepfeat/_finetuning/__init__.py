"""FineTunedClassifier: trains a new head and the top of a pretrained network.

- ``classifier``: the estimator, its parameters and how it is fitted
- ``prediction``: what it does once it is fitted
- ``labels``, ``data``: labels and decoded images of one fit
- ``tuned_part``, ``new_head``, ``parts``: a frozen trunk, a tuned tail, a new head
- ``fitted``, ``detached_head``: what training leaves, and its head alone
- ``training``, ``phases``, ``frozen``, ``monitoring``: fit → phase → epoch → step
- ``settling``: what the norms of random weights start from
- ``augmentation``, ``scratch``: random changes, and arrays larger than memory
"""
