"""One room per method. A room imports the hall below it (backbone, reasoning, tasks, chain), never another room."""
