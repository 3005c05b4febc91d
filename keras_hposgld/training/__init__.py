"""What trains a Keras model: the parts behind the public models. Private."""
