"""Stand-ins for every edge: a scripted engine, a scripted runner, a manual clock."""
