"""What displays of curves share, and the axes of new figures."""

from abc import ABC, abstractmethod


class Display(ABC):
    """Base of the displays that draw curves."""

    def plot(self, ax=None):
        """Draw the figure.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None creates a new figure.

        Returns
        -------
        display : Display
            The display itself.

        Raises
        ------
        ImportError
            If matplotlib, of the extra ``[plot]``, is not installed.
        """
        self.ax_ = new_axes() if ax is None else ax
        self.figure_ = self.ax_.figure
        self.lines_ = []
        self._draw()
        return self

    @abstractmethod
    def _draw(self):
        """Draw on `ax_`, and store the lines in `lines_`."""


def pyplot():
    """The module of matplotlib that makes figures; says how to install it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Displays need matplotlib. Type: pip install 'skdeepfeat[plot]'"
        ) from error
    return plt


def new_axes(n_rows=1, n_columns=1, **options):
    """The axes of a new figure, in an array if there are several."""
    return pyplot().subplots(n_rows, n_columns, layout="constrained", **options)[1]
