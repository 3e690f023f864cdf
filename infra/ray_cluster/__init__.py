"""Ray sessions, submitted jobs, and work spread over workers."""
