"""Front end: networks of other libraries become models that can be split."""
