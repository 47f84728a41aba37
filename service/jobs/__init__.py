"""Work that takes longer than a request may: kept in a folder, handed out by huey, done aside."""
