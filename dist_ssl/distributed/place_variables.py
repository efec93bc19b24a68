"""Variables of the environment that give a process its place: the agent and torchrun set them, the ranks read them."""

RANK, SIZE = "RANK", "WORLD_SIZE"
"""Its number among all processes, and their number."""
LOCAL_RANK, LOCAL_SIZE = "LOCAL_RANK", "LOCAL_WORLD_SIZE"
"""Its number among the processes of its node, and their number."""
RESTARTS = "TORCHELASTIC_RESTART_COUNT"
"""How often torchrun has started the processes again."""
