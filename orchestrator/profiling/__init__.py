"""Measuring a cluster: links, shared media, layer times, and the caches of these."""
