"""Messages between the front end and the engine, and the sockets that carry them."""
