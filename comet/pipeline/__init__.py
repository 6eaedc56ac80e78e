"""One text on several processes: schedules, messages, monitoring, costs. Not here: anything that one process needs."""
