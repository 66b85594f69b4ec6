"""Where rows come from: the embedded builders, and a team's own files."""
