"""Messages between devices: their bytes, codecs and transports."""
