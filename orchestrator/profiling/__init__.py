"""Measurement of a cluster: links, shared media, layer times, and caches of the results."""
