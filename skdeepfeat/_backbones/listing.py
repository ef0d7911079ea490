"""The list of networks by name, of any kind of input."""

from .registry import list_image_backbones
from .text_registry import list_text_backbones

LISTED = {"image": list_image_backbones, "text": list_text_backbones}


def list_backbones(prefix="", *, kind="image"):
    """List the names of networks, which `backbone` parameters accept.

    Parameters
    ----------
    prefix : str, default=""
        Only names that begin with it. The two thousand names of timm are only listed
        for a prefix that begins with "timm/".
    kind : {"image", "text"}, default="image"
        Networks of images, for :class:`PretrainedCNNFeatures`, or of texts, for
        :class:`PretrainedTextFeatures`. Folders, files and models on the hub are not
        listed.

    Returns
    -------
    names : list of str
        Names of the networks of this package, of torchvision's classification networks
        and of the registered networks, sorted; or of networks of texts. The list is
        shown as a table when printed or displayed in a notebook, with the licence of
        the weights if it is known.

    Raises
    ------
    ValueError
        If `prefix` is not a str, or `kind` is not one of these.

    See Also
    --------
    list_layers : List the layers of a network.
    register_backbone : Add a network of your own to the list.

    Examples
    --------
    >>> from skdeepfeat import list_backbones
    >>> "resnet50" in list_backbones()
    True
    >>> list_backbones("timm/resnet18")[:3]
    backbone               parameters  image size  licence
    timm/resnet18.a1_in1k  11,689,512         224  apache-2.0
    timm/resnet18.a2_in1k  11,689,512         224  apache-2.0
    timm/resnet18.a3_in1k  11,689,512         160  apache-2.0
    >>> list_backbones(kind="text")
    backbone   parameters  features  licence
    wordllama   8,192,000       256  mit
    """
    if not isinstance(prefix, str):
        raise ValueError(
            "The 'prefix' parameter of list_backbones must be a str, such as 'resnet' "
            f"or '' for all names. Got {prefix!r} instead."
        )
    return LISTED[check_kind(kind, "list_backbones")](prefix)


def check_kind(kind, function: str) -> str:
    """The kind of input, if it is one."""
    if kind not in LISTED:
        raise ValueError(
            f"The 'kind' parameter of {function} must be one of {list(LISTED)}. Got "
            f"{kind!r} instead."
        )
    return kind
