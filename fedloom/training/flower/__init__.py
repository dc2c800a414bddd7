"""`fedloom flower` and the two apps that it writes a folder for."""
