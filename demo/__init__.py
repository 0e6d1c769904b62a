"""The demo model: how it is taught, on what, and how that is checked. No part of the server."""
