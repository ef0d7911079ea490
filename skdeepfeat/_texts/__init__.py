"""The first station of the walk for texts: X → texts → batches of tokens.

- ``input``: X as an estimator receives it
- ``containers``: what X may be
- ``windows``: the rows of one call, and their keys
- ``specs``: what a network of texts takes
- ``words``: the words of a text, and the tokenizers of the user's own networks
- ``batches``: tokens, cut and padded, of as many texts as are computed at once

Nothing here imports torch.
"""
