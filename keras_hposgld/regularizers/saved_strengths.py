"""How Keras's files keep the strengths of a regularizer."""

from keras_hposgld.regularizers import partners
from keras_hposgld.regularizers.copies import Copies
from keras_hposgld.regularizers.copies import copies_of
from keras_hposgld.regularizers.penalties import Penalties


class SavedStrengths:
    """What Keras calls of a regularizer to save and to load it.

    Attributes:
        is_from_file: Whether a file has said which weights it is for.
    """

    is_from_file: bool
    _kept: Penalties
    _copies: Copies
    _identity: str

    def get_build_config(self):
        first = self._copies.first
        return {
            "identity": first._identity,
            "penalties": first._kept.described(),
        }

    def build_from_config(self, config):
        self._identity = config["identity"]
        self._copies = copies_of(self._identity, self)
        self.is_from_file = bool(config["penalties"])
        if self._copies.first is self:
            for entry in config["penalties"]:
                self._kept.add_described(entry)

    def save_own_variables(self, store):
        """Saves the strengths with the addresses of their weights."""
        self._kept.write(store)

    def load_own_variables(self, store):
        """Loads strengths, those of a weight that is not yet seen as well.

        A store is empty if another copy of this object has the strengths, or
        if the file has none; then they stay as they are.
        """
        first = self._copies.first
        first._copies.are_complete = True
        if not store.keys():
            return
        entries = partners.entries_of(store)
        if entries is None:  # of version 0.1.0, in the order of `tracked`
            super(SavedStrengths, first).load_own_variables(store)
            return
        first._kept.read(store, entries)
        first.is_from_file = True
